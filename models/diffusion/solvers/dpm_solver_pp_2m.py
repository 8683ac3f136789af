"""DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2)."""

from collections.abc import Iterator
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.exponential import data_weights, lambda_step
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    call_denoiser,
    lincomb,
    time_grid,
)

C = TypeVar("C")


class DPMSolverPP2M(IterativeSolver):
    """Multistep in data form: the guess of the step before gives the slope, one call a step."""

    order = 2

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1]."""
        path = time_grid(self._schedule, times)
        before: Tensor | None = None
        for s in range(path.total):
            guess = call_denoiser(denoiser, x, path.t[s], cond)
            kept, new = data_weights(path, s, s + 1)
            if before is None or path.ends_clean(s + 1):
                x = lincomb(x, kept, (guess.x0, new))
            else:
                slope = new / 2 * lambda_step(path, s, s + 1) / lambda_step(path, s - 1, s)
                x = lincomb(x, kept, (guess.x0, new + slope), (before, -slope))
            before = guess.x0
            yield SolverStep(s + 1, path.total, path.t[s + 1], x, guess)
