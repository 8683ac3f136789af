"""DPM-Solver-3 (arXiv 2206.00927, algorithm 2)."""

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


class DPMSolver3(SinglestepSolver, frozen=True, extra="forbid"):
    """Singlestep in noise form; every time of the grid is one call, three make a step.

    The last line uses both differences of the noise, the parabola through its three values, and so
    keeps the order wherever the grid has its inner times; the paper's uses one and needs r_2 = 2/3.
    """

    fixed_order: ClassVar[int] = 3
    kind: Literal["dpm_solver_3"] = "dpm_solver_3"

    def _step(
        self, grid: TimeGrid, s: int, end: int, size: int, x: Tensor, preds: list[Prediction]
    ) -> Tensor:
        first, *later = (pred.noise for pred in preds)
        if not later:
            return data_step(grid, s, end, x, preds[0].x0)
        h = lambda_step(grid, s, end)
        phi1 = math.expm1(h)
        phi2 = phi1 / h - 1
        x = noise_step(grid, s, end, x, first)
        near = lambda_step(grid, s, s + 1) / h
        slope = (later[0] - first) / near
        if len(later) == 1:
            return x - grid.sigma[end] * phi2 * slope
        far = lambda_step(grid, s, s + 2) / h
        far_slope = (later[1] - first) / far
        bend = 2 * (far_slope - slope) / (far - near)
        slope = (far * slope - near * far_slope) / (far - near)
        return x - grid.sigma[end] * (phi2 * slope + (phi2 / h - 0.5) * bend)
