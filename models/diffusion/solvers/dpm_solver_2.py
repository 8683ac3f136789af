"""DPM-Solver-2 (arXiv 2206.00927, algorithm 1). DPM-Solver-1 is DDIM."""

import math
from collections.abc import Iterator
from typing import Literal

from torch import Generator, Tensor

from models.diffusion.solvers.exponential import data_step, groups, lambda_step, noise_step
from models.diffusion.solvers.solver import GridDenoiser, Solver, SolverStep, TimeGrid


class DPMSolver2(Solver, frozen=True, extra="forbid"):
    """Singlestep in noise form; every time of the grid is one call, two make a step.

    So on a grid with equal steps of the log signal-to-noise ratio the inner call lies in the middle
    (the paper's r_1 = 1/2); on others it lies where the grid has it, r_1 as in the appendix.
    """

    kind: Literal["dpm_solver_2"] = "dpm_solver_2"

    @property
    def order(self) -> int:
        return 2

    def _iterate(
        self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator
    ) -> Iterator[SolverStep]:
        s = 0
        for size in groups(grid, 2):
            pred = denoise(x, s)
            if size == 1:
                x = data_step(grid, s, s + 1, x, pred.x0)
            else:
                m, t = s + 1, s + 2
                inner = noise_step(grid, s, m, x, pred.noise)
                yield grid.step(m, inner, pred)
                middle = denoise(inner, m)
                h = lambda_step(grid, s, t)
                r = lambda_step(grid, s, m) / h
                slope = (middle.noise - pred.noise) / (2 * r)
                x = noise_step(grid, s, t, x, pred.noise) - grid.sigma[t] * math.expm1(h) * slope
                pred = middle
            s += size
            yield grid.step(s, x, pred)
