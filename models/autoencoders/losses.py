"""Reconstruction losses on a decoder's six channels: means and log scales of three colours."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 0.1
"""Width of the margins that keep pixels off the ends of the logit-Laplace's support."""


def map_pixels(image: Tensor) -> Tensor:
    """Pixels in [-1, 1] to [e, 1 - e] (DALL-E, A.3: (1 - 2e) x + e on x in [0, 1])."""
    return (1 - 2 * EPSILON) * ((image + 1) / 2) + EPSILON


def unmap_pixels(mapped: Tensor) -> Tensor:
    """The inverse of `map_pixels`; not clamped, so that gradients pass everywhere."""
    return (mapped - EPSILON) / (1 - 2 * EPSILON) * 2 - 1


def reconstruction(output: Tensor) -> Tensor:
    """The image of a decoder's means: (B, 6, H, W) to (B, 3, H, W) around [-1, 1], not clamped."""
    return unmap_pixels(torch.sigmoid(output[:, :3].float()))


def logit_laplace_density(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log density of the logit-Laplace distribution at x in (0, 1) (DALL-E, A.3, eq. 2).

    ln f = -|logit x - mean| / b - ln b - ln 2 - ln x - ln(1 - x), with b = exp(log_scale).
    """
    distance = (torch.logit(x) - mean).abs() * torch.exp(-log_scale)
    return -distance - log_scale - math.log(2) - torch.log(x) - torch.log1p(-x)


def logit_laplace(output: Tensor, image: Tensor) -> Tensor:
    """Negative log likelihood in nats per value, a scalar.

    `output` (B, 6, H, W) holds the means and then the log scales; `image` (B, 3, H, W) is in
    [-1, 1].
    """
    mean, log_scale = output.float().chunk(2, dim=1)
    return -logit_laplace_density(map_pixels(image.float()), mean, log_scale).mean()


def l1_l2(output: Tensor, image: Tensor) -> Tensor:
    """Mean absolute plus mean squared error per value, in units of [-1, 1], a scalar."""
    guess = reconstruction(output)
    image = image.float()
    return F.l1_loss(guess, image) + F.mse_loss(guess, image)
