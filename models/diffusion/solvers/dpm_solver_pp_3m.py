"""DPM-Solver++(3M), the third-order multistep solver of arXiv 2211.01095."""

import math
from typing import Literal

from torch import Generator, Tensor

from models.diffusion.solvers.exponential import data_step, lambda_step
from models.diffusion.solvers.solver import GridDenoiser, Solver, Steps, TimeGrid


class DPMSolverPP3M(Solver, frozen=True, extra="forbid"):
    """Multistep in data form: the parabola through the newest three predictions, one call a step.

    The first step is of first order: begun where x_0 changes over it, the whole is of order 2. The
    parabola's second derivative is twice the second difference. The released code, and what follows
    it, leaves the 2 out and is of order 2: `released` does the same, to repeat its samples.
    """

    kind: Literal["dpm_solver_pp_3m"] = "dpm_solver_pp_3m"
    released: bool = False

    @property
    def order(self) -> int:
        return 2 if self.released else 3

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        history: list[Tensor] = []
        for s in range(grid.total):
            pred = denoise(x, s)
            history = [pred.x0, *history[:2]]
            x = data_step(grid, s, s + 1, x, pred.x0)
            if len(history) > 1 and not grid.is_clean(s + 1):
                x = x + grid.alpha[s + 1] * self._correction(grid, s, history)
            yield grid.step(s + 1, x, pred)

    def _correction(self, grid: TimeGrid, s: int, history: list[Tensor]) -> Tensor:
        """What the change of x_0 over the step adds to x_t / alpha_t, from 2 or 3 predictions."""
        h = lambda_step(grid, s, s + 1)
        phi1 = math.expm1(-h)
        r0 = lambda_step(grid, s - 1, s) / h
        recent = (history[0] - history[1]) / r0
        if len(history) == 2:
            return -phi1 / 2 * recent
        r1 = lambda_step(grid, s - 2, s - 1) / h
        earlier = (history[1] - history[2]) / r1
        second = (recent - earlier) / (r0 + r1)
        slope, bend = recent + r0 * second, (1.0 if self.released else 2.0) * second
        return (phi1 / h + 1) * slope - ((phi1 + h) / h**2 - 0.5) * bend
