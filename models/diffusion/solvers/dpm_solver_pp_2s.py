"""DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1)."""

import math
from collections.abc import Iterator
from typing import Literal

from torch import Generator, Tensor

from models.diffusion.solvers.exponential import data_step, groups, lambda_step
from models.diffusion.solvers.solver import GridDenoiser, Solver, SolverStep, TimeGrid


class DPMSolverPP2S(Solver, frozen=True, extra="forbid"):
    """Singlestep in data form; every time of the grid is one call, two make a step."""

    kind: Literal["dpm_solver_pp_2s"] = "dpm_solver_pp_2s"

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
                inner = data_step(grid, s, m, x, pred.x0)
                yield grid.step(m, inner, pred)
                middle = denoise(inner, m)
                h = lambda_step(grid, s, t)
                r = lambda_step(grid, s, m) / h
                slope = (middle.x0 - pred.x0) / (2 * r)
                x = data_step(grid, s, t, x, pred.x0) - grid.alpha[t] * math.expm1(-h) * slope
                pred = middle
            s += size
            yield grid.step(s, x, pred)
