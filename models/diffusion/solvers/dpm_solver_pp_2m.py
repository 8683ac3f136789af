"""DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2)."""

from collections.abc import Iterator
from typing import Literal

from torch import Generator, Tensor

from models.diffusion.solvers.exponential import data_weights, lambda_step
from models.diffusion.solvers.solver import GridDenoiser, Solver, SolverStep, TimeGrid, lincomb


class DPMSolverPP2M(Solver, frozen=True, extra="forbid"):
    """Multistep in data form: the previous prediction gives the slope, one call a step."""

    kind: Literal["dpm_solver_pp_2m"] = "dpm_solver_pp_2m"

    @property
    def order(self) -> int:
        return 2

    def _iterate(
        self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator
    ) -> Iterator[SolverStep]:
        previous: Tensor | None = None
        for s in range(grid.total):
            pred = denoise(x, s)
            kept, new = data_weights(grid, s, s + 1)
            if previous is None or grid.is_clean(s + 1):
                x = lincomb(x, kept, (pred.x0, new))
            else:
                slope = new / 2 * lambda_step(grid, s, s + 1) / lambda_step(grid, s - 1, s)
                x = lincomb(x, kept, (pred.x0, new + slope), (previous, -slope))
            previous = pred.x0
            yield grid.step(s + 1, x, pred)
