"""Heun's method on the probability-flow ODE (EDM, arXiv 2206.00364, algorithms 1 and 2)."""

from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from models.diffusion.solvers.churn import Churn, start_step
from models.diffusion.solvers.solver import GridDenoiser, Solver, Steps, TimeGrid


class Heun(Solver, frozen=True, extra="forbid"):
    """The slope d(x / alpha) / d(sigma / alpha) = noise, averaged over both ends of a step.

    Two calls a step, one for a step to a time without noise.
    """

    fixed_order: ClassVar[int] = 2
    kind: Literal["heun"] = "heun"
    churn: Churn = Churn()

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        for step in range(grid.total):
            here = start_step(self.churn, denoise, grid, step, x, rng)
            pred = denoise.call(here.x, here.t)
            kept, alpha = grid.alpha[step + 1] / here.alpha, grid.alpha[step + 1]
            width = alpha * (grid.noise_level(step + 1) - here.level)
            x = torch.add(kept * here.x, pred.noise, alpha=width)
            if not grid.is_clean(step + 1):
                end = denoise(x, step + 1)
                slope = (pred.noise + end.noise) / 2
                x, pred = torch.add(kept * here.x, slope, alpha=width), end
            yield grid.step(step + 1, x, pred)
