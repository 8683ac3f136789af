"""Euler steps that overshoot, then noise (k-diffusion's "euler ancestral")."""

import math
from typing import ClassVar, Literal

from pydantic import Field
from torch import Generator, Tensor

from models.diffusion.solvers.solver import GridDenoiser, Solver, Steps, TimeGrid
from models.nn.random import randn_like


class EulerAncestral(Solver, frozen=True, extra="forbid"):
    """From level u_t = sigma / alpha to u_s: an Euler step to d, then noise of deviation n.

    n = eta sqrt(u_s^2 (u_t^2 - u_s^2) / u_t^2), at most u_s, and d^2 + n^2 = u_s^2. With eta 1 it
    is ancestral sampling (DDPM) in x / alpha, with eta 0 Euler's method.
    """

    decreasing_only: ClassVar[bool] = True
    kind: Literal["euler_ancestral"] = "euler_ancestral"
    eta: float = Field(default=1.0, ge=0)

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        for step in range(grid.total):
            now, then = grid.noise_level(step), grid.noise_level(step + 1)
            pred = denoise(x, step)
            noise = min(then, self.eta * math.sqrt(then**2 * (now**2 - then**2) / now**2))
            down = math.sqrt(max(then**2 - noise**2, 0.0))
            scaled = x / grid.alpha[step] + (down - now) * pred.noise
            if noise:
                scaled = scaled + noise * randn_like(x, rng)
            x = grid.alpha[step + 1] * scaled
            yield grid.step(step + 1, x, pred)
