"""UniPC (arXiv 2302.04867), B(h) = e^h - 1 ("bh2"), in data form."""

import math
from typing import Literal

from torch import Generator, Tensor

from models.diffusion.solvers.exponential import data_step, data_weights, lambda_step
from models.diffusion.solvers.solver import GridDenoiser, Solver, Steps, TimeGrid, lincomb


class UniPC(Solver, frozen=True, extra="forbid"):
    """UniP-p predicts, and UniC-p corrects with the next step's evaluation: one call a step.

    The order is p + 1 (theorem 3.1), provided the first steps, which have fewer predictions to
    build on, start where x_0 hardly changes. On the way to a time without noise p falls to 1.
    """

    kind: Literal["unipc"] = "unipc"
    points: Literal[1, 2, 3] = 2
    """p."""

    @property
    def order(self) -> int:
        return self.points + 1

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        history: list[Tensor] = []
        points, origin = 1, x
        for s in range(grid.total):
            pred = denoise(x, s)
            if s:
                x = _corrected(grid, s - 1, origin, history[:points], pred.x0)
            history = [pred.x0, *history[: self.points - 1]]
            left = grid.total - s if grid.is_clean(grid.total) else self.points
            points, origin = min(len(history), left), x
            x = _predicted(grid, s, x, history[:points])
            yield grid.step(s + 1, x, pred)


def _predicted(grid: TimeGrid, s: int, x: Tensor, history: list[Tensor]) -> Tensor:
    """UniP-p: x at s + 1 from x and the newest p predictions at s, s - 1, ..."""
    if len(history) == 1:
        return data_step(grid, s, s + 1, x, history[0])
    scale, ratios, moments = _conditions(grid, s, len(history))
    # one unknown is 1/2 (as the paper chooses), more are solved for
    weights = [0.5] if len(history) == 2 else _solve(ratios, moments[:-1])
    shares = [scale * w / r for w, r in zip(weights, ratios, strict=True)]
    return _extrapolated(grid, s, x, history, shares)


def _corrected(grid: TimeGrid, s: int, x: Tensor, history: list[Tensor], end: Tensor) -> Tensor:
    """UniC-p: x at s + 1 again, with the prediction there beside the newest p at s, s - 1, ..."""
    scale, ratios, moments = _conditions(grid, s, len(history))
    ratios = [*ratios, 1.0]
    weights = [0.5] if len(history) == 1 else _solve(ratios, moments)
    shares = [scale * w / r for w, r in zip(weights, ratios, strict=True)]
    return _extrapolated(grid, s, x, [*history, end], shares)


def _extrapolated(
    grid: TimeGrid, s: int, x: Tensor, history: list[Tensor], shares: list[float]
) -> Tensor:
    """The exact step with the first prediction, less alpha x shares of the others' differences."""
    kept, new = data_weights(grid, s, s + 1)
    first, *others = history
    alpha = grid.alpha[s + 1]
    differences = [(other, -alpha * share) for other, share in zip(others, shares, strict=True)]
    return lincomb(x, kept, (first, new + alpha * sum(shares)), *differences)


def _conditions(grid: TimeGrid, s: int, points: int) -> tuple[float, list[float], list[float]]:
    """B(h), the positions of earlier predictions in steps, and the order conditions, 1 to p."""
    h = -lambda_step(grid, s, s + 1)
    ratios = [lambda_step(grid, s, s - back) / -h for back in range(1, points)]
    scale = math.expm1(h)
    moments, phi, factorial = [], scale / h - 1, 1
    for k in range(1, points + 1):
        moments.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / h - 1 / factorial
    return scale, ratios, moments


def _solve(ratios: list[float], moments: list[float]) -> list[float]:
    """Weights w with sum_m w_m ratio_m^(k - 1) = moment_k, k = 1 to their number.

    By divided differences (Björck and Pereyra's way) in plain numbers: there are at most three.
    """
    weights = list(moments)
    count = len(ratios)
    for k in range(count - 1):
        for i in range(count - 1, k, -1):
            weights[i] -= ratios[k] * weights[i - 1]
    for k in range(count - 2, -1, -1):
        for i in range(k + 1, count):
            weights[i] /= ratios[i] - ratios[i - k - 1]
        for i in range(k, count - 1):
            weights[i] -= weights[i + 1]
    return weights
