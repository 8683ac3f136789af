"""Analytic-DPM (arXiv 2201.06503): ancestral sampling with the optimal variance."""

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    TimeGrid,
    call_denoiser,
    require_decreasing,
    time_grid,
)
from models.nn.random import randn_like

C = TypeVar("C")


class AnalyticDPM(IterativeSolver):
    """The mean of DDPM; the variance is that of the best reverse step (theorem 1, eq. 7).

    With lambda^2 the smallest variance, alpha_ts and the rest as in DDPM, and G = E|noise|^2 / d at
    t, so that sigma_t^2 Gamma = G: lambda^2 + (sigma_t / alpha_ts -
    sqrt(sigma_s^2 - lambda^2))^2 (1 - G). A step to a time without noise adds none.
    """

    order = 1

    def __init__(self, schedule: Schedule, moments: Sequence[float]) -> None:
        """`moments`: G at every time a step starts from, as `noise_moments` estimates them."""
        self._schedule = schedule
        self._moments = tuple(moments)

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1].

        Raises:
            ValueError: times that do not fall, or whose number is not that of the moments + 1.
        """
        require_decreasing(times, "analytic-DPM")
        path = time_grid(self._schedule, times)
        if len(self._moments) != path.total:
            raise ValueError(f"{path.total} steps need as many moments, got {len(self._moments)}")
        for step in range(path.total):
            guess = call_denoiser(denoiser, x, path.t[step], cond)
            least = least_variance(path, step)
            kept = math.sqrt(max(path.sigma[step + 1] ** 2 - least, 0.0))
            x = path.alpha[step + 1] * guess.x0 + kept * guess.noise
            if not path.ends_clean(step + 1):
                variance = optimal_variance(path, step, self._moments[step])
                x = x + math.sqrt(variance) * randn_like(x, rng)
            yield SolverStep(step + 1, path.total, path.t[step + 1], x, guess)


def least_variance(path: TimeGrid, step: int) -> float:
    """lambda^2 = var_ts sigma_s^2 / sigma_t^2, the variance of q(x_s | x_t, x_0)."""
    ratio = path.alpha[step] / path.alpha[step + 1]
    now, then = path.sigma[step] ** 2, path.sigma[step + 1] ** 2
    return max((now - ratio**2 * then) * then / now, 0.0)


def optimal_variance(path: TimeGrid, step: int, moment: float) -> float:
    """Equation 7, with G clamped to [0, 1] (theorem 2: its true range)."""
    least = least_variance(path, step)
    ratio = path.alpha[step] / path.alpha[step + 1]
    gap = path.sigma[step] / ratio - math.sqrt(max(path.sigma[step + 1] ** 2 - least, 0.0))
    return least + gap**2 * (1 - min(max(moment, 0.0), 1.0))


def noise_moments(
    denoiser: Denoiser[C], schedule: Schedule, x0: Tensor, times: Tensor, cond: C, rng: Generator
) -> list[float]:
    """G = E|noise guess|^2 / d at times[:-1], over data x0 (B, ...) noised once a time (eq. 8)."""
    path = time_grid(schedule, times)
    moments = []
    for step in range(path.total):
        x = path.alpha[step] * x0 + path.sigma[step] * randn_like(x0, rng)
        moments.append(float(call_denoiser(denoiser, x, path.t[step], cond).noise.square().mean()))
    return moments
