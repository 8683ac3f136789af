"""DPM-Solver-3 (arXiv 2206.00927, algorithm 2)."""

import math
from collections.abc import Iterator
from typing import Literal

from torch import Generator, Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.solvers.exponential import data_step, groups, lambda_step, noise_step
from models.diffusion.solvers.solver import GridDenoiser, Solver, SolverStep, TimeGrid


class DPMSolver3(Solver, frozen=True, extra="forbid"):
    """Singlestep in noise form; every time of the grid is one call, three make a step.

    The last line uses both differences of the noise, the parabola through its three values, and so
    keeps the order wherever the grid has its inner times; the paper's uses one and needs r_2 = 2/3.
    """

    kind: Literal["dpm_solver_3"] = "dpm_solver_3"

    @property
    def order(self) -> int:
        return 3

    def _iterate(
        self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator
    ) -> Iterator[SolverStep]:
        s = 0
        for size in groups(grid, 3):
            origin, preds = x, [denoise(x, s)]
            for end in range(s + 1, s + size + 1):
                x = _inner(grid, s, end, origin, preds)
                yield grid.step(end, x, preds[-1])
                if end < s + size:
                    preds.append(denoise(x, end))
            s += size


def _inner(grid: TimeGrid, s: int, end: int, x: Tensor, preds: list[Prediction]) -> Tensor:
    """x at `end` from x at `s` and the noise at s, s + 1 ... of which there are 1 to 3."""
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
