"""DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2)."""

from typing import ClassVar, Literal

from torch import Generator, Tensor

from models.diffusion.solvers.exponential import data_weights, lambda_step
from models.diffusion.solvers.solver import GridDenoiser, Solver, Steps, TimeGrid, lincomb


class DPMSolverPP2M(Solver, frozen=True, extra="forbid"):
    """Multistep in data form: the previous prediction gives the slope, one call a step."""

    fixed_order: ClassVar[int] = 2
    kind: Literal["dpm_solver_pp_2m"] = "dpm_solver_pp_2m"

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
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
