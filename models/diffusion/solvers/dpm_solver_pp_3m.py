"""DPM-Solver++(3M), the third-order multistep solver of arXiv 2211.01095."""

import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.exponential import data_step, lambda_step
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    TimeGrid,
    call_denoiser,
    time_grid,
)

C = TypeVar("C")


class DPMSolverPP3M(IterativeSolver):
    """Multistep in data form: the parabola through the newest three guesses, one call a step.
    The first step is of first order: begun where x_0 changes over it, the whole is of order 2.

    The parabola's second derivative is twice the second difference. The released code, and what
    follows it, leaves the 2 out and is of order 2: `released` does the same, to repeat its samples.
    """

    order = 3

    def __init__(self, schedule: Schedule, *, released: bool = False) -> None:
        self._schedule = schedule
        self._bend = 1.0 if released else 2.0

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1]."""
        path = time_grid(self._schedule, times)
        known: list[Tensor] = []
        for s in range(path.total):
            guess = call_denoiser(denoiser, x, path.t[s], cond)
            known = [guess.x0, *known[:2]]
            x = data_step(path, s, s + 1, x, guess.x0)
            if len(known) > 1 and not path.ends_clean(s + 1):
                x = x + path.alpha[s + 1] * self._correction(path, s, known)
            yield SolverStep(s + 1, path.total, path.t[s + 1], x, guess)

    def _correction(self, path: TimeGrid, s: int, known: list[Tensor]) -> Tensor:
        """What the change of x_0 over the step adds to x_t / alpha_t, from 2 or 3 guesses."""
        h = lambda_step(path, s, s + 1)
        phi1 = math.expm1(-h)
        r0 = lambda_step(path, s - 1, s) / h
        recent = (known[0] - known[1]) / r0
        if len(known) == 2:
            return -phi1 / 2 * recent
        r1 = lambda_step(path, s - 2, s - 1) / h
        earlier = (known[1] - known[2]) / r1
        second = (recent - earlier) / (r0 + r1)
        slope, bend = recent + r0 * second, self._bend * second
        return (phi1 / h + 1) * slope - ((phi1 + h) / h**2 - 0.5) * bend
