"""SDE-DPM-Solver++(2M) (arXiv 2211.01095, section 5 and appendix)."""

import math
from typing import ClassVar, Literal

from torch import Generator, Tensor

from models.diffusion.solvers.exponential import lambda_step
from models.diffusion.solvers.solver import GridDenoiser, Solver, Steps, TimeGrid
from models.nn.random import randn_like


class DPMSolverPPSDE(Solver, frozen=True, extra="forbid"):
    """The reverse SDE in data form, x_0 linear in lambda over a step, the noise integrated exactly.

    x_t = sigma_t / sigma_s e^-h x + alpha_t (1 - e^-2h) x_0 + sigma_t sqrt(1 - e^-2h) noise. With
    one point x_0 is constant over a step, SDE-DPM-Solver++(1), which is ancestral sampling.
    """

    decreasing_only: ClassVar[bool] = True
    kind: Literal["dpm_solver_pp_sde"] = "dpm_solver_pp_sde"
    points: Literal[1, 2] = 2

    @property
    def order(self) -> int:
        return self.points

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        previous: Tensor | None = None
        for s in range(grid.total):
            pred = denoise(x, s)
            h = lambda_step(grid, s, s + 1)
            fresh = -math.expm1(-2 * h)
            sigma, alpha = grid.sigma[s + 1], grid.alpha[s + 1]
            x0 = pred.x0
            if self.points == 2 and previous is not None and not grid.is_clean(s + 1):
                x0 = x0 + (x0 - previous) * (h / lambda_step(grid, s - 1, s) / 2)
            x = sigma / grid.sigma[s] * math.exp(-h) * x + alpha * fresh * x0
            if not grid.is_clean(s + 1):
                x = x + sigma * math.sqrt(fresh) * randn_like(x, rng)
            previous = pred.x0
            yield grid.step(s + 1, x, pred)
