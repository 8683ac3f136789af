"""Analytic-DPM (arXiv 2201.06503): ancestral sampling with the optimal variance."""

import math
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import Field
from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule
from models.diffusion.solvers.solver import (
    GridDenoiser,
    Solver,
    Steps,
    TimeGrid,
    call_denoiser,
    time_grid,
)
from models.nn.random import randn_like

C = TypeVar("C")


class AnalyticDPM(Solver, frozen=True, extra="forbid"):
    """The mean of DDPM; the variance is that of the best reverse step (theorem 1, eq. 7).

    With lambda^2 the smallest variance, alpha_ts and the rest as in DDPM, and G = E|noise|^2 / d at
    t, so that sigma_t^2 Gamma = G: lambda^2 + (sigma_t / alpha_ts -
    sqrt(sigma_s^2 - lambda^2))^2 (1 - G). A step to a time without noise adds none.
    """

    decreasing_only: ClassVar[bool] = True
    kind: Literal["analytic_dpm"] = "analytic_dpm"
    moments: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """G at every time a step starts from, as `noise_moments` estimates them on data."""

    def check(self, steps: int) -> None:
        if self.moments is None:
            raise ValueError("analytic_dpm needs moments, estimated on data for its times")
        if len(self.moments) != steps:
            raise ValueError(f"{steps} steps need as many moments, got {len(self.moments)}")

    def from_step(self, first: int) -> Self:
        moments = None if self.moments is None else self.moments[first:]
        return self.model_copy(update={"moments": moments})

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        for step, moment in enumerate(self.moments or ()):
            pred = denoise(x, step)
            x = grid.alpha[step + 1] * pred.x0 + _noise_weight(grid, step) * pred.noise
            if not grid.is_clean(step + 1):
                x = x + math.sqrt(optimal_variance(grid, step, moment)) * randn_like(x, rng)
            yield grid.step(step + 1, x, pred)


def _noise_weight(grid: TimeGrid, step: int) -> float:
    """sqrt(sigma_s^2 - lambda^2)."""
    return math.sqrt(max(grid.sigma[step + 1] ** 2 - grid.posterior_std(step) ** 2, 0.0))


def optimal_variance(grid: TimeGrid, step: int, moment: float) -> float:
    """Equation 7, with G clamped to [0, 1] (theorem 2: its true range)."""
    ratio = grid.alpha[step] / grid.alpha[step + 1]
    gap = grid.sigma[step] / ratio - _noise_weight(grid, step)
    return grid.posterior_std(step) ** 2 + gap**2 * (1 - min(max(moment, 0.0), 1.0))


def noise_moments(
    denoiser: Denoiser[C],
    schedule: Schedule,
    x0: Tensor,
    times: Tensor,
    condition: C,
    rng: Generator,
) -> list[float]:
    """G = E|predicted noise|^2 / d at times[:-1], for data x0 (B, ...), noised once (eq. 8)."""
    grid = time_grid(schedule, times)
    moments = []
    for t, alpha, sigma in zip(grid.t[:-1], grid.alpha, grid.sigma, strict=False):
        pred = call_denoiser(denoiser, alpha * x0 + sigma * randn_like(x0, rng), t, condition)
        moments.append(float(pred.noise.square().mean()))
    return moments
