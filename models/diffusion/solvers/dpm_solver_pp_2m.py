"""DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2)."""

import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedule import Schedule
from models.diffusion.solvers.exponential import data_step, growth
from models.diffusion.solvers.solver import SolverStep, Stepwise, ask, grid

C = TypeVar("C")


class DPMSolverPP2M(Stepwise):
    """Multistep in data form: the guess of the step before gives the slope, one call a step."""

    order = 2

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1]."""
        path = grid(self._schedule, times)
        before: Tensor | None = None
        for s in range(path.total):
            guess = ask(denoiser, x, path.t[s], cond)
            x = data_step(path, s, s + 1, x, guess.x0)
            if before is not None and not path.ends_clean(s + 1):
                h = growth(path, s, s + 1)
                slope = (guess.x0 - before) / (growth(path, s - 1, s) / h)
                x = x - path.alpha[s + 1] * math.expm1(-h) / 2 * slope
            before = guess.x0
            yield SolverStep(s + 1, path.total, path.t[s + 1], x, guess)
