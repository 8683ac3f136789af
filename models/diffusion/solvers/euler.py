"""Euler's method on the probability-flow ODE (arXiv 2206.00364)."""

from collections.abc import Iterator
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.churn import Churn, start
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    batched_times,
    lincomb,
    scalars,
    time_grid,
)

C = TypeVar("C")


class Euler(IterativeSolver):
    """d(x / alpha) = noise d(sigma / alpha) (arXiv 2010.02502, eq. 14; EDM's eq. 1 with s = 1).

    Without churn it is DDIM with eta 0, step by step.
    """

    order = 1

    def __init__(self, schedule: Schedule, churn: Churn | None = None) -> None:
        self._schedule = schedule
        self._churn = churn or Churn()

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1]; rising times invert."""
        path = time_grid(self._schedule, times)
        total, steps = path.total, range(path.total)
        levels = [path.ratio(place) for place in range(total + 1)]
        kept = scalars((path.alpha[step + 1] / path.alpha[step] for step in steps), x)
        batch_times = batched_times(path, x)
        for step in steps:
            t, alpha, level, scale = (
                batch_times[step],
                path.alpha[step + 1],
                levels[step],
                kept[step],
            )
            if self._churn.amount:
                here = start(self._churn, self._schedule, path, step, x, rng)
                x, level = here.x, here.level
                t, scale = x.new_full((len(x),), here.time), scalars([alpha / here.alpha], x)[0]
            guess = denoiser(x, t, cond)
            x = lincomb(x, scale, (guess.noise, alpha * (levels[step + 1] - level)))
            yield SolverStep(step + 1, total, path.t[step + 1], x, guess)
