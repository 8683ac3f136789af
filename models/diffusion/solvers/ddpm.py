"""Ancestral sampling (DDPM, arXiv 2006.11239)."""

import math
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.solvers.solver import GridDenoiser, Solver, Steps, TimeGrid
from models.nn.random import randn_like


class DDPM(Solver, frozen=True, extra="forbid"):
    """x_s from q(x_s | x_t, x_0 = prediction) for s < t (eq. 6 and 7, between any two times).

    With alpha_ts = alpha_t / alpha_s and var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2 the mean is
    alpha_ts sigma_s^2 / sigma_t^2 x_t + alpha_s var_ts / sigma_t^2 x_0. The variance is
    `smallest`, var_ts sigma_s^2 / sigma_t^2, or `largest`, var_ts (section 3.2); a denoiser that
    learns it says where the log variance lies between the two (arXiv 2102.09672, eq. 15). A step to
    a time without noise adds none.
    """

    decreasing_only: ClassVar[bool] = True
    kind: Literal["ddpm"] = "ddpm"
    variance: Literal["smallest", "largest"] = "smallest"

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        for step in range(grid.total):
            pred = denoise(x, step)
            alpha_t, alpha_s = grid.alpha[step : step + 2]
            var_t, var_s = (sigma * sigma for sigma in grid.sigma[step : step + 2])
            kept = alpha_t / alpha_s * var_s / var_t
            new = alpha_s * grid.forward_variance(step) / var_t
            mean = kept * x + new * pred.x0
            std = self._std(grid, step, pred)
            if pred.mean_gradient is not None:
                mean = mean + std**2 * pred.mean_gradient
            x = mean
            if not grid.is_clean(step + 1):
                x = mean + std * randn_like(x, rng)
            yield grid.step(step + 1, x, pred)

    def _std(self, grid: TimeGrid, step: int, pred: Prediction) -> Tensor | float:
        """Standard deviation of the step, a number or one per value (B, ...)."""
        smallest = grid.posterior_std(step)
        if grid.is_clean(step + 1):
            return smallest
        if pred.logvar_fraction is not None:
            # a^(1 - v) b^v of two standard deviations, whose ratio b / a is sigma_t / sigma_s
            return smallest * torch.pow(
                grid.sigma[step] / grid.sigma[step + 1], pred.logvar_fraction
            )
        return math.sqrt(grid.forward_variance(step)) if self.variance == "largest" else smallest
