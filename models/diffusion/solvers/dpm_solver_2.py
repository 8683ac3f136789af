"""DPM-Solver-2 (arXiv 2206.00927, algorithm 1). DPM-Solver-1 is DDIM."""

import math
from typing import ClassVar, Literal

from torch import Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.solvers.exponential import (
    SinglestepSolver,
    data_step,
    lambda_step,
    noise_step,
)
from models.diffusion.solvers.solver import TimeGrid


class DPMSolver2(SinglestepSolver, frozen=True, extra="forbid"):
    """Singlestep in noise form; every time of the grid is one call, two make a step.

    So on a grid with equal steps of the log signal-to-noise ratio the inner call lies in the middle
    (the paper's r_1 = 1/2); on others it lies where the grid has it, r_1 as in the appendix.
    """

    fixed_order: ClassVar[int] = 2
    kind: Literal["dpm_solver_2"] = "dpm_solver_2"

    def _step(
        self, grid: TimeGrid, s: int, end: int, size: int, x: Tensor, preds: list[Prediction]
    ) -> Tensor:
        first, *later = preds
        if size == 1:
            return data_step(grid, s, end, x, first.x0)
        x = noise_step(grid, s, end, x, first.noise)
        if not later:
            return x
        h = lambda_step(grid, s, end)
        r = lambda_step(grid, s, s + 1) / h
        slope = (later[0].noise - first.noise) / (2 * r)
        return x - grid.sigma[end] * math.expm1(h) * slope
