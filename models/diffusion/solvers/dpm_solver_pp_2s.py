"""DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1)."""

import math
from typing import ClassVar, Literal

from torch import Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.solvers.exponential import SinglestepSolver, data_step, lambda_step
from models.diffusion.solvers.solver import TimeGrid


class DPMSolverPP2S(SinglestepSolver, frozen=True, extra="forbid"):
    """Singlestep in data form; every time of the grid is one call, two make a step."""

    fixed_order: ClassVar[int] = 2
    kind: Literal["dpm_solver_pp_2s"] = "dpm_solver_pp_2s"

    def _step(
        self, grid: TimeGrid, s: int, end: int, size: int, x: Tensor, preds: list[Prediction]
    ) -> Tensor:
        first, *later = preds
        x = data_step(grid, s, end, x, first.x0)
        if not later:
            return x
        h = lambda_step(grid, s, end)
        r = lambda_step(grid, s, s + 1) / h
        slope = (later[0].x0 - first.x0) / (2 * r)
        return x - grid.alpha[end] * math.expm1(-h) * slope
