"""DPM-Solver-3 (arXiv 2206.00927, algorithm 2)."""

import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.exponential import data_step, groups, lambda_step, noise_step
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    TimeGrid,
    call_denoiser,
    time_grid,
)

C = TypeVar("C")


class DPMSolver3(IterativeSolver):
    """Singlestep in noise form; every time of the grid is one call, three make a step.

    The last line uses both differences of the noise, the parabola through its three values, and so
    keeps the order wherever the grid has its inner times; the paper's uses one and needs r_2 = 2/3.
    """

    order = 3

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1]."""
        path = time_grid(self._schedule, times)
        s = 0
        for size in groups(path, 3):
            origin, guesses = x, [call_denoiser(denoiser, x, path.t[s], cond)]
            for end in range(s + 1, s + size + 1):
                x = self._inner(path, s, end, origin, guesses)
                yield SolverStep(end, path.total, path.t[end], x, guesses[-1])
                if end < s + size:
                    guesses.append(call_denoiser(denoiser, x, path.t[end], cond))
            s += size

    @staticmethod
    def _inner(path: TimeGrid, s: int, end: int, x: Tensor, guesses: list[Prediction]) -> Tensor:
        """x at `end` from x at `s` and the noise at s, s + 1 ... of which there are 1 to 3."""
        first, *later = (guess.noise for guess in guesses)
        if not later:
            return data_step(path, s, end, x, guesses[0].x0)
        h = lambda_step(path, s, end)
        phi1 = math.expm1(h)
        phi2 = phi1 / h - 1
        x = noise_step(path, s, end, x, first)
        slopes = [
            (noise - first) / (lambda_step(path, s, s + 1 + place) / h)
            for place, noise in enumerate(later)
        ]
        if len(slopes) == 1:
            return x - path.sigma[end] * phi2 * slopes[0]
        near, far = lambda_step(path, s, s + 1) / h, lambda_step(path, s, s + 2) / h
        slope = (far * slopes[0] - near * slopes[1]) / (far - near)
        bend = 2 * (slopes[1] - slopes[0]) / (far - near)
        return x - path.sigma[end] * (phi2 * slope + (phi2 / h - 0.5) * bend)
