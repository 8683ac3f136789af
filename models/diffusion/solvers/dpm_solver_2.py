"""DPM-Solver-2 (arXiv 2206.00927, algorithm 1). DPM-Solver-1 is DDIM."""

import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.exponential import data_step, groups, lambda_step, noise_step
from models.diffusion.solvers.solver import IterativeSolver, SolverStep, call_denoiser, time_grid

C = TypeVar("C")


class DPMSolver2(IterativeSolver):
    """Singlestep in noise form; every time of the grid is one call, two make a step.

    So on a grid with equal steps of the log signal-to-noise ratio the inner call lies in the middle
    (the paper's r_1 = 1/2); on others it lies where the grid has it, r_1 as in the appendix.
    """

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
                inner = noise_step(path, s, m, x, guess.noise)
                yield SolverStep(m, path.total, path.t[m], inner, guess)
                middle = call_denoiser(denoiser, inner, path.t[m], cond)
                h = lambda_step(path, s, t)
                r = lambda_step(path, s, m) / h
                slope = (middle.noise - guess.noise) / (2 * r)
                x = noise_step(path, s, t, x, guess.noise)
                x = x - path.sigma[t] * math.expm1(h) * slope
                guess = middle
            s += size
            yield SolverStep(s, path.total, path.t[s], x, guess)
