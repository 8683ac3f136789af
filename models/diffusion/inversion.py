"""From images to the noise that DDIM generates them from, and back (arXiv 2010.02502, 4.3)."""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.grids import noisy_end
from models.diffusion.solvers.solver import ProgressCallback

C = TypeVar("C")


@dataclass(frozen=True)
class DDIMInversion:
    """The latent noise of images, and the images that are generated from it."""

    noise: Tensor
    """(B, ...): x at the noisiest time, divided as `sampling.scale_initial_noise` multiplies."""
    reconstruction: Tensor
    """(B, ...)."""


def encoding_times(schedule: Schedule, times: Tensor) -> Tensor:
    """Decreasing times (n,) that end above t = 0, where an image holds no noise to be predicted.

    Their last is then the smallest noise level: an image is treated as x_t at that time.
    """
    least = noisy_end(schedule, float(times[-1]))
    kept = times[:-1]
    return torch.cat([kept[kept > least], times.new_tensor([least])])


def ddim_round_trip(
    denoiser: Denoiser[C],
    schedule: Schedule,
    x0: Tensor,
    times: Tensor,
    condition: C,
    progress: ProgressCallback | None = None,
) -> DDIMInversion:
    """Images (B, ...) to noise along the times backwards, and back along them; deterministic.

    With `times` of `encoding_times`; the reconstruction's error is of first order in their steps.
    """
    steps = len(times) - 1
    solver, unused = DDIM(), torch.Generator(x0.device)

    def report(before: int) -> ProgressCallback:
        def call(done: int, _: int) -> None:
            if progress is not None:
                progress(before + done, 2 * steps)

        return call

    latent = solver.solve(schedule, denoiser, x0, times.flip(0), condition, unused, report(0))
    back = solver.solve(schedule, denoiser, latent, times, condition, unused, report(steps))
    end = schedule.at(times[0])
    return DDIMInversion(latent / math.hypot(float(end.alpha), float(end.sigma)), back)


@dataclass(frozen=True)
class NoiseStatistics:
    """How close values are to independent standard normal ones; each field is (B,)."""

    mean: Tensor
    std: Tensor
    skewness: Tensor
    kurtosis: Tensor
    """Excess: 0 for normal values."""
    distance: Tensor
    """Kolmogorov-Smirnov: the largest gap between the distribution functions."""
    neighbours: Tensor
    """Correlation of values side by side in a row: what is left of the image's shapes."""


def noise_statistics(noise: Tensor) -> NoiseStatistics:
    """Of every sample of (B, C, H, W)."""
    flat = noise.to(torch.float64).flatten(1)
    mean, std = flat.mean(dim=1), flat.std(dim=1)
    normed = (flat - mean[:, None]) / std[:, None]
    size = flat.shape[1]
    normal = torch.special.ndtr(flat.sort(dim=1).values)
    ranks = torch.arange(size + 1, dtype=torch.float64, device=flat.device) / size
    gap = torch.maximum((normal - ranks[:-1]).abs(), (normal - ranks[1:]).abs())
    left, right = (part.to(torch.float64).flatten(1) for part in (noise[..., :-1], noise[..., 1:]))
    return NoiseStatistics(
        mean=mean,
        std=std,
        skewness=(normed**3).mean(dim=1),
        kurtosis=(normed**4).mean(dim=1) - 3,
        distance=gap.amax(dim=1),
        neighbours=_correlation(left, right),
    )


def _correlation(left: Tensor, right: Tensor) -> Tensor:
    """Of the rows of two (B, n)."""
    left = left - left.mean(dim=1, keepdim=True)
    right = right - right.mean(dim=1, keepdim=True)
    scale = (left.square().sum(dim=1) * right.square().sum(dim=1)).sqrt()
    return (left * right).sum(dim=1) / scale
