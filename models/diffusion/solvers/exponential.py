"""The exact part of a step of the diffusion ODE in lambda = ln(alpha / sigma), h its growth.

With the guess constant over a step, x_t = sigma_t / sigma_s x + alpha_t (1 - e^-h) x_0 (data form,
arXiv 2211.01095, eq. 8) and equally x_t = alpha_t / alpha_s x - sigma_t (e^h - 1) noise (noise
form, arXiv 2206.00927, eq. 3.4); higher orders add differences of guesses to either.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from models.diffusion.solvers.solver import TimeGrid, lincomb


def lambda_step(path: TimeGrid, start: int, end: int) -> float:
    """h = lambda_end - lambda_start."""
    return path.half_log_snr[end] - path.half_log_snr[start]


def data_weights(path: TimeGrid, start: int, end: int) -> tuple[float, float]:
    """What x at `start` and a constant guess of x_0 count for at `end`."""
    kept = path.sigma[end] / path.sigma[start]
    return kept, -path.alpha[end] * math.expm1(-lambda_step(path, start, end))


def data_step(path: TimeGrid, start: int, end: int, x: Tensor, x0: Tensor) -> Tensor:
    """x (B, ...) at place `end`, from x at `start` and a constant guess of x_0."""
    kept, new = data_weights(path, start, end)
    return lincomb(x, kept, (x0, new))


def noise_step(path: TimeGrid, start: int, end: int, x: Tensor, noise: Tensor) -> Tensor:
    """x (B, ...) at place `end`, from x at `start` and a constant guess of the noise."""
    kept = path.alpha[end] / path.alpha[start]
    new = -path.sigma[end] * math.expm1(lambda_step(path, start, end))
    return lincomb(x, kept, (noise, new))


def groups(path: TimeGrid, size: int) -> Sequence[int]:
    """How many grid steps each step of a singlestep solver of order `size` takes.

    As many whole groups as fit, then what is left; a step to a time without noise, where lambda is
    infinite, stands alone.
    """
    alone = 1 if path.ends_clean(path.total) else 0
    whole, rest = divmod(path.total - alone, size)
    return [size] * whole + [rest] * bool(rest) + [1] * alone
