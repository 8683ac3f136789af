"""Euler steps that overshoot, then noise (k-diffusion's "euler ancestral")."""

import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    call_denoiser,
    require_decreasing,
    time_grid,
)
from models.nn.random import randn_like

C = TypeVar("C")


class EulerAncestral(IterativeSolver):
    """From level u_t = sigma / alpha to u_s: an Euler step to d, then noise of deviation n.

    n = eta sqrt(u_s^2 (u_t^2 - u_s^2) / u_t^2), at most u_s, and d^2 + n^2 = u_s^2. With eta 1 it
    is ancestral sampling (DDPM) in x / alpha, with eta 0 Euler's method.
    """

    order = 1

    def __init__(self, schedule: Schedule, eta: float = 1.0) -> None:
        if eta < 0:
            raise ValueError(f"eta must not be negative, got {eta}")
        self._schedule = schedule
        self._eta = eta

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1].

        Raises:
            ValueError: times that do not fall.
        """
        require_decreasing(times, "euler ancestral")
        path = time_grid(self._schedule, times)
        for step in range(path.total):
            now, then = path.ratio(step), path.ratio(step + 1)
            guess = call_denoiser(denoiser, x, path.t[step], cond)
            share = math.sqrt(then**2 * (now**2 - then**2) / now**2)
            noise = min(then, self._eta * share)
            down = math.sqrt(max(then**2 - noise**2, 0.0))
            scaled = x / path.alpha[step] + (down - now) * guess.noise
            if noise:
                scaled = scaled + noise * randn_like(x, rng)
            x = path.alpha[step + 1] * scaled
            yield SolverStep(step + 1, path.total, path.t[step + 1], x, guess)
