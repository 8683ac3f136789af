"""Inpainting with a model that was not trained for it: the known region is replaced at every step.

As in RePaint (arXiv 2201.09865, eq. 8) without its resampling, and with one noise for all steps:
the known region then follows its exact path from noise to the image, under every solver.
"""

from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from models.diffusion.parameterization import Prediction
from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule

C = TypeVar("C")


def with_known_region(
    denoiser: Denoiser[C], schedule: Schedule, known: Tensor, noise: Tensor, keep: Tensor
) -> Denoiser[C]:
    """The denoiser, told what x_0 and the noise are where `keep` (B, 1, h, w) is true.

    There its input is alpha `known` + sigma `noise` (B, C, h, w), and its prediction these two.
    """

    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        here = schedule.at(t).broadcast_to(x)
        replaced = torch.where(keep, here.alpha * known + here.sigma * noise, x)
        found = denoiser(replaced, t, condition)
        return Prediction(
            lambda: torch.where(keep, known, found.x0),
            lambda: torch.where(keep, noise, found.noise),
            found.logvar_fraction,
            found.mean_gradient,
        )

    return denoise


def coarse_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (B, 1, H, W) at the size of latents: 1 where any of its pixels is repainted."""
    factors = mask.shape[2] // size[0], mask.shape[3] // size[1]
    return F.max_pool2d(mask, factors)
