"""Keeping x_0 in the range of images (Imagen, arXiv 2205.11487, 2.3).

Wrap it around guidance, which leaves the range.
"""

from typing import TypeVar

import torch
from torch import Tensor

from models.diffusion.parameterization import Prediction, from_x0
from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule

C = TypeVar("C")


def static_threshold(
    denoiser: Denoiser[C], schedule: Schedule, low: float = -1.0, high: float = 1.0
) -> Denoiser[C]:
    """Static thresholding: x_0 clamped to the range, and the noise that then explains x_t."""

    def denoise(x: Tensor, t: Tensor, cond: C) -> Prediction:
        guess = denoiser(x, t, cond)
        inside = from_x0(guess.x0.clamp(low, high), x, schedule.at(t))
        return Prediction(inside.x0, inside.noise, guess.logvar_fraction)

    return denoise


def dynamic_threshold(
    denoiser: Denoiser[C], schedule: Schedule, *, percentile: float = 0.995, least: float = 1.0
) -> Denoiser[C]:
    """Dynamic thresholding: x_0 clamped to [-s, s] and divided by s / least.

    s is the percentile of |x_0| within each sample, at least `least`.
    """

    def denoise(x: Tensor, t: Tensor, cond: C) -> Prediction:
        guess = denoiser(x, t, cond)
        sizes = guess.x0.abs().flatten(1).float()
        limit = torch.quantile(sizes, percentile, dim=1).clamp(min=least).to(x.dtype)
        limit = limit.view((-1,) + (1,) * (x.ndim - 1))
        inside = from_x0(guess.x0.clamp(-limit, limit) / limit * least, x, schedule.at(t))
        return Prediction(inside.x0, inside.noise, guess.logvar_fraction)

    return denoise
