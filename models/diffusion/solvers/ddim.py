"""DDIM (arXiv 2010.02502)."""

import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    TimeGrid,
    batched_times,
    lincomb,
    scalars,
    time_grid,
)
from models.nn.random import randn_like

C = TypeVar("C")


class DDIM(IterativeSolver):
    """Equation 12: eta 0 is deterministic and runs both ways, eta 1 is ancestral.

    With rising times it is the deterministic encoder (section 4.3). It is DPM-Solver-1
    (arXiv 2206.00927, section 4.1) and Euler's method in sigma / alpha (eq. 14).
    """

    order = 1

    def __init__(self, schedule: Schedule, eta: float = 0.0) -> None:
        if eta < 0:
            raise ValueError(f"eta must not be negative, got {eta}")
        self._schedule = schedule
        self._eta = eta

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1]; rising times invert.

        Raises:
            ValueError: rising times with eta > 0, which has no inverse.
        """
        if self._eta and bool((times.diff() > 0).any()):
            raise ValueError("only eta 0 can be inverted")
        path = time_grid(self._schedule, times)
        total, steps = path.total, range(path.total)
        new = [self._deviation(path, step) if self._eta else 0.0 for step in steps]
        pairs = zip(path.sigma[1:], new, strict=True)
        kept = scalars((math.sqrt(max(whole**2 - part**2, 0.0)) for whole, part in pairs), x)
        batch_times = batched_times(path, x)
        for step in steps:
            guess = denoiser(x, batch_times[step], cond)
            x = lincomb(guess.noise, kept[step], (guess.x0, path.alpha[step + 1]))
            if self._eta:
                x = x + new[step] * randn_like(x, rng)
            yield SolverStep(step + 1, total, path.t[step + 1], x, guess)

    def _deviation(self, path: TimeGrid, step: int) -> float:
        """Standard deviation of the new noise, equation 16, for any alpha and sigma."""
        ratio = path.alpha[step] / path.alpha[step + 1]
        now, then = path.sigma[step], path.sigma[step + 1]
        fresh = max(now * now - ratio * ratio * then * then, 0.0)
        return self._eta * then / now * math.sqrt(fresh)
