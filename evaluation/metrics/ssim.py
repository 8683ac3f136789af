"""Structural similarity of 8-bit images."""

import torch
from torch import Tensor
from torch.nn import functional as F

DEFINITION = (
    "Wang et al. 2004: gaussian window 11, sigma 1.5, K1 0.01, K2 0.03, population covariance, "
    "whole windows only, colours averaged; mean"
)


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, eq. 13) of (n, H, W, 3) uint8: (n,) float64.

    Raises:
        ValueError: images smaller than the window of 11.
    """
    if min(images.shape[1:3]) < 11:
        raise ValueError(f"images of {tuple(images.shape[1:3])} are smaller than the window")
    x, y = (each.movedim(-1, 1).double().flatten(0, 1)[:, None] for each in (images, originals))
    window = _window(x.device)

    def local_mean(values: Tensor) -> Tensor:
        return F.conv2d(values, window)

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x.square()
    variance_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity = similarity / (mean_x.square() + mean_y.square() + c1)
    similarity = similarity / (variance_x + variance_y + c2)
    return similarity.flatten(1).mean(dim=1).view(len(images), -1).mean(dim=1)


def _window(device: torch.device) -> Tensor:
    """Gaussian of sigma 1.5 on 11 x 11 pixels, sum 1: (1, 1, 11, 11)."""
    offset = torch.arange(11, dtype=torch.float64, device=device) - 5
    line = torch.exp(-offset.square() / (2 * 1.5**2))
    line = line / line.sum()
    return (line[:, None] * line)[None, None]
