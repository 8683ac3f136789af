"""The exact part of a step of the diffusion ODE in lambda = ln(alpha / sigma), h its change.

With the prediction constant over a step, x_t = sigma_t / sigma_s x + alpha_t (1 - e^-h) x_0 (data
form, arXiv 2211.01095, eq. 8) and equally x_t = alpha_t / alpha_s x - sigma_t (e^h - 1) noise
(noise form, arXiv 2206.00927, eq. 3.4); higher orders add differences of predictions to either.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from models.diffusion.solvers.solver import TimeGrid, lincomb


def lambda_step(grid: TimeGrid, start: int, end: int) -> float:
    """h = lambda_end - lambda_start."""
    return grid.half_log_snr[end] - grid.half_log_snr[start]


def data_weights(grid: TimeGrid, start: int, end: int) -> tuple[float, float]:
    """The weights at `end` of x at `start` and of a constant prediction of x_0."""
    kept = grid.sigma[end] / grid.sigma[start]
    return kept, -grid.alpha[end] * math.expm1(-lambda_step(grid, start, end))


def data_step(grid: TimeGrid, start: int, end: int, x: Tensor, x0: Tensor) -> Tensor:
    """x (B, ...) at `end`, from x at `start` and a constant prediction of x_0."""
    kept, new = data_weights(grid, start, end)
    return lincomb(x, kept, (x0, new))


def noise_step(grid: TimeGrid, start: int, end: int, x: Tensor, noise: Tensor) -> Tensor:
    """x (B, ...) at `end`, from x at `start` and a constant prediction of the noise."""
    kept = grid.alpha[end] / grid.alpha[start]
    new = -grid.sigma[end] * math.expm1(lambda_step(grid, start, end))
    return lincomb(x, kept, (noise, new))


def groups(grid: TimeGrid, size: int) -> Sequence[int]:
    """How many grid steps each step of a singlestep solver of order `size` takes.

    As many whole groups as fit, then what is left; a step to a time without noise, where lambda is
    infinite, stands alone.
    """
    alone = 1 if grid.is_clean(grid.total) else 0
    whole, rest = divmod(grid.total - alone, size)
    return [size] * whole + [rest] * bool(rest) + [1] * alone
