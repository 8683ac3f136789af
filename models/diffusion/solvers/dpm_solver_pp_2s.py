"""DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1)."""

import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.exponential import data_step, groups, lambda_step
from models.diffusion.solvers.solver import IterativeSolver, SolverStep, call_denoiser, time_grid

C = TypeVar("C")


class DPMSolverPP2S(IterativeSolver):
    """Singlestep in data form; every time of the grid is one call, two make a step."""

    order = 2

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1]."""
        path = time_grid(self._schedule, times)
        s = 0
        for size in groups(path, 2):
            guess = call_denoiser(denoiser, x, path.t[s], cond)
            if size == 1:
                x = data_step(path, s, s + 1, x, guess.x0)
            else:
                m, t = s + 1, s + 2
                inner = data_step(path, s, m, x, guess.x0)
                yield SolverStep(m, path.total, path.t[m], inner, guess)
                middle = call_denoiser(denoiser, inner, path.t[m], cond)
                h = lambda_step(path, s, t)
                r = lambda_step(path, s, m) / h
                slope = (middle.x0 - guess.x0) / (2 * r)
                x = data_step(path, s, t, x, guess.x0) - path.alpha[t] * math.expm1(-h) * slope
                guess = middle
            s += size
            yield SolverStep(s, path.total, path.t[s], x, guess)
