"""Euler's method on the probability-flow ODE (arXiv 2206.00364)."""

from typing import Literal

from torch import Generator, Tensor

from models.diffusion.solvers.churn import Churn, start_step
from models.diffusion.solvers.solver import (
    GridDenoiser,
    Solver,
    Steps,
    TimeGrid,
    lincomb,
    scalars,
)


class Euler(Solver, frozen=True, extra="forbid"):
    """d(x / alpha) = noise d(sigma / alpha) (arXiv 2010.02502, eq. 14; EDM's eq. 1 with s = 1).

    Without churn it is DDIM with eta 0, step by step.
    """

    kind: Literal["euler"] = "euler"
    churn: Churn = Churn()

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        levels = [grid.noise_level(index) for index in range(grid.total + 1)]
        scales = scalars(
            (now / then for then, now in zip(grid.alpha, grid.alpha[1:], strict=False)), x
        )
        for step in range(grid.total):
            t, level, scale = denoise.times[step], levels[step], scales[step]
            if self.churn.amount:
                here = start_step(self.churn, denoise, grid, step, x, rng)
                x, t, level = here.x, here.t, here.level
                (scale,) = scalars([grid.alpha[step + 1] / here.alpha], x)
            pred = denoise.call(x, t)
            width = grid.alpha[step + 1] * (levels[step + 1] - level)
            x = lincomb(x, scale, (pred.noise, width))
            yield grid.step(step + 1, x, pred)
