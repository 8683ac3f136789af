"""From pictures to the noise that DDIM draws them from, and back (arXiv 2010.02502, 4.3)."""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.grids import noisy_end
from models.diffusion.solvers.solver import ProgressCallback

C = TypeVar("C")


@dataclass(frozen=True)
class RoundTrip:
    """Noise that stands for pictures, and the pictures that are drawn from it."""

    noise: Tensor
    """(B, ...): x at the noisiest time, divided as `sampling.scale_initial_noise` multiplies."""
    back: Tensor
    """(B, ...)."""


def encoding_times(schedule: Schedule, times: Tensor) -> Tensor:
    """Falling times (n,) without a clean end, where a picture holds no noise to be guessed.

    Their last is then the least noise there is: a picture is taken for one at that time.
    """
    least = noisy_end(schedule, float(times[-1]))
    kept = times[:-1]
    return torch.cat([kept[kept > least], times.new_tensor([least])])


def round_trip(
    denoiser: Denoiser[C],
    schedule: Schedule,
    x0: Tensor,
    times: Tensor,
    cond: C,
    progress: ProgressCallback | None = None,
) -> RoundTrip:
    """Pictures (B, ...) to noise along the times backwards, and back along them; draws nothing.

    With `times` of `encoding_times`; the error of the way back is of first order in their steps.
    """
    steps = len(times) - 1
    solver, unused = DDIM(schedule), torch.Generator(x0.device)

    def second(done: int, _: int) -> None:
        if progress is not None:
            progress(steps + done, 2 * steps)

    def first(done: int, _: int) -> None:
        if progress is not None:
            progress(done, 2 * steps)

    latent = solver.solve(denoiser, x0, times.flip(0), cond, unused, first)
    back = solver.solve(denoiser, latent, times, cond, unused, second)
    end = schedule.at(times[0])
    return RoundTrip(latent / math.hypot(float(end.alpha), float(end.sigma)), back)


@dataclass(frozen=True)
class NoiseStatistics:
    """How near values are to independent standard normal ones; each field is (B,)."""

    mean: Tensor
    deviation: Tensor
    skewness: Tensor
    kurtosis: Tensor
    """Excess: 0 for normal values."""
    distance: Tensor
    """Kolmogorov's: the largest gap between their distribution function and the normal one."""
    neighbours: Tensor
    """Correlation of values side by side in a row: what is left of the picture's shapes."""


def noise_statistics(noise: Tensor) -> NoiseStatistics:
    """Of every sample of (B, C, H, W)."""
    flat = noise.to(torch.float64).flatten(1)
    mean, deviation = flat.mean(dim=1), flat.std(dim=1)
    normed = (flat - mean[:, None]) / deviation[:, None]
    size = flat.shape[1]
    normal = torch.special.ndtr(flat.sort(dim=1).values)
    places = torch.arange(size + 1, dtype=torch.float64, device=flat.device) / size
    gap = torch.maximum((normal - places[:-1]).abs(), (normal - places[1:]).abs())
    left, right = (part.to(torch.float64).flatten(1) for part in (noise[..., :-1], noise[..., 1:]))
    return NoiseStatistics(
        mean=mean,
        deviation=deviation,
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
