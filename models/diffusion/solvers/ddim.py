"""DDIM (arXiv 2010.02502)."""

import math
from typing import Literal

from pydantic import Field
from torch import Generator, Tensor

from models.diffusion.solvers.solver import (
    GridDenoiser,
    Solver,
    Steps,
    TimeGrid,
    lincomb,
    scalars,
)
from models.nn.random import randn_like


class DDIM(Solver, frozen=True, extra="forbid"):
    """Equation 12: eta 0 is deterministic and runs both ways, eta 1 is ancestral.

    With increasing times it is the deterministic encoder (section 4.3). It is DPM-Solver-1
    (arXiv 2206.00927, section 4.1) and Euler's method in sigma / alpha (eq. 14).
    """

    kind: Literal["ddim"] = "ddim"
    eta: float = Field(default=0.0, ge=0)

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        if self.eta and any(now < then for now, then in zip(grid.t, grid.t[1:], strict=False)):
            raise ValueError("only eta 0 can be inverted")
        # equation 16, for any alpha and sigma
        new = [self.eta and self.eta * grid.posterior_std(step) for step in range(grid.total)]
        pairs = zip(grid.sigma[1:], new, strict=True)
        kept = scalars((math.sqrt(max(whole**2 - part**2, 0.0)) for whole, part in pairs), x)
        for step in range(grid.total):
            pred = denoise(x, step)
            x = lincomb(pred.noise, kept[step], (pred.x0, grid.alpha[step + 1]))
            if self.eta:
                x = x + new[step] * randn_like(x, rng)
            yield grid.step(step + 1, x, pred)
