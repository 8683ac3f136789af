"""Heun's method on the probability-flow ODE (EDM, arXiv 2206.00364, algorithms 1 and 2)."""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.churn import Churn, start
from models.diffusion.solvers.solver import IterativeSolver, SolverStep, call_denoiser, time_grid

C = TypeVar("C")


class Heun(IterativeSolver):
    """The slope d(x / alpha) / d(sigma / alpha) = noise, averaged over both ends of a step.

    Two calls a step, one for a step to a time without noise.
    """

    order = 2

    def __init__(self, schedule: Schedule, churn: Churn | None = None) -> None:
        self._schedule = schedule
        self._churn = churn or Churn()

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1]; rising times invert."""
        path = time_grid(self._schedule, times)
        for step in range(path.total):
            here = start(self._churn, self._schedule, path, step, x, rng)
            guess = call_denoiser(denoiser, here.x, here.time, cond)
            kept, alpha = path.alpha[step + 1] / here.alpha, path.alpha[step + 1]
            width = path.ratio(step + 1) - here.level
            x = torch.add(kept * here.x, guess.noise, alpha=alpha * width)
            if not path.ends_clean(step + 1):
                end = call_denoiser(denoiser, x, path.t[step + 1], cond)
                slope = (guess.noise + end.noise) / 2
                x, guess = torch.add(kept * here.x, slope, alpha=alpha * width), end
            yield SolverStep(step + 1, path.total, path.t[step + 1], x, guess)
