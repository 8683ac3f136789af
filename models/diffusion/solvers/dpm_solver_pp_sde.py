"""SDE-DPM-Solver++(2M) (arXiv 2211.01095, section 5 and appendix)."""

import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.exponential import lambda_step
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    call_denoiser,
    require_decreasing,
    time_grid,
)
from models.nn.random import randn_like

C = TypeVar("C")


class DPMSolverPPSDE(IterativeSolver):
    """The reverse SDE in data form, x_0 linear in lambda over a step, the noise integrated exactly.

    x_t = sigma_t / sigma_s e^-h x + alpha_t (1 - e^-2h) x_0 + sigma_t sqrt(1 - e^-2h) noise. With
    `slope` False x_0 is constant over a step, SDE-DPM-Solver++(1), which is ancestral sampling.
    """

    order = 2

    def __init__(self, schedule: Schedule, *, slope: bool = True) -> None:
        self._schedule = schedule
        self._slope = slope

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1].

        Raises:
            ValueError: times that do not fall.
        """
        require_decreasing(times, "the SDE solver")
        path = time_grid(self._schedule, times)
        before: Tensor | None = None
        for s in range(path.total):
            guess = call_denoiser(denoiser, x, path.t[s], cond)
            h = lambda_step(path, s, s + 1)
            fresh = -math.expm1(-2 * h)
            sigma, alpha = path.sigma[s + 1], path.alpha[s + 1]
            x0 = guess.x0
            if self._slope and before is not None and not path.ends_clean(s + 1):
                x0 = x0 + (x0 - before) * (h / lambda_step(path, s - 1, s) / 2)
            x = sigma / path.sigma[s] * math.exp(-h) * x + alpha * fresh * x0
            if not path.ends_clean(s + 1):
                x = x + sigma * math.sqrt(fresh) * randn_like(x, rng)
            before = guess.x0
            yield SolverStep(s + 1, path.total, path.t[s + 1], x, guess)
