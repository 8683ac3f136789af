"""The exact part of a step of the diffusion ODE in lambda = ln(alpha / sigma), h its change.

With the prediction constant over a step, x_t = sigma_t / sigma_s x + alpha_t (1 - e^-h) x_0 (data
form, arXiv 2211.01095, eq. 8) and equally x_t = alpha_t / alpha_s x - sigma_t (e^h - 1) noise
(noise form, arXiv 2206.00927, eq. 3.4); higher orders add differences of predictions to either.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence

from torch import Generator, Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.solvers.solver import GridDenoiser, Solver, Steps, TimeGrid, lincomb


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


class SinglestepSolver(Solver, frozen=True, extra="forbid"):
    """Every time of the grid is one call, and as many as the order make a step."""

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        start = 0
        for size in _groups(grid, self.fixed_order):
            origin, preds = x, [denoise(x, start)]
            for end in range(start + 1, start + size + 1):
                x = self._step(grid, start, end, size, origin, preds)
                yield grid.step(end, x, preds[-1])
                if end < start + size:
                    preds.append(denoise(x, end))
            start += size

    @abstractmethod
    def _step(
        self, grid: TimeGrid, s: int, end: int, size: int, x: Tensor, preds: list[Prediction]
    ) -> Tensor:
        """x at `end` from x at s and the predictions at s, s + 1 ..., in a step of `size` times."""


def _groups(grid: TimeGrid, size: int) -> Sequence[int]:
    """How many grid steps each step of a singlestep solver of order `size` takes.

    As many whole groups as fit, then what is left; a step to a time without noise, where lambda is
    infinite, stands alone.
    """
    alone = 1 if grid.is_clean(grid.total) else 0
    whole, rest = divmod(grid.total - alone, size)
    return [size] * whole + [rest] * bool(rest) + [1] * alone
