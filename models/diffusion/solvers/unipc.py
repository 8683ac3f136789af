"""UniPC (arXiv 2302.04867), B(h) = e^h - 1 ("bh2"), in data form."""

import math
from collections.abc import Iterator
from typing import Literal, TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.exponential import data_step, data_weights, lambda_step
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    TimeGrid,
    call_denoiser,
    lincomb,
    time_grid,
)

C = TypeVar("C")


class UniPC(IterativeSolver):
    """UniP-p predicts, and UniC-p corrects with the call the next step needs anyway: one a step.

    `order` is p + 1 (theorem 3.1), provided the first steps, which have fewer guesses to build
    on, start where x_0 hardly changes. On the way to a time without noise p falls to 1.
    """

    def __init__(self, schedule: Schedule, points: Literal[1, 2, 3] = 2) -> None:
        """`points` is p."""
        self._schedule = schedule
        self._points = points
        self.order = points + 1

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1]."""
        path = time_grid(self._schedule, times)
        known: list[Tensor] = []
        points, origin = 1, x
        for s in range(path.total):
            guess = call_denoiser(denoiser, x, path.t[s], cond)
            if s:
                x = self._corrected(path, s - 1, origin, known[:points], guess.x0)
            known = [guess.x0, *known[: self._points - 1]]
            left = path.total - s if path.ends_clean(path.total) else self._points
            points, origin = min(len(known), left), x
            x = self._predicted(path, s, x, known[:points])
            yield SolverStep(s + 1, path.total, path.t[s + 1], x, guess)

    @staticmethod
    def _predicted(path: TimeGrid, s: int, x: Tensor, known: list[Tensor]) -> Tensor:
        """UniP-p: x at s + 1 from x and the newest p guesses at s, s - 1, ..."""
        if len(known) == 1:
            return data_step(path, s, s + 1, x, known[0])
        scale, ratios, moments = _conditions(path, s, len(known))
        # one unknown is 1/2 (as the paper chooses), more are solved for
        weights = [0.5] if len(known) == 2 else _solved(ratios, moments[:-1])
        return _moved(
            path, s, x, known, [scale * w / r for w, r in zip(weights, ratios, strict=True)]
        )

    @staticmethod
    def _corrected(path: TimeGrid, s: int, x: Tensor, known: list[Tensor], end: Tensor) -> Tensor:
        """UniC-p: x at s + 1 again, with the guess at s + 1 beside the newest p at s, s - 1, ..."""
        scale, ratios, moments = _conditions(path, s, len(known))
        ratios = [*ratios, 1.0]
        weights = [0.5] if len(known) == 1 else _solved(ratios, moments)
        shares = [scale * w / r for w, r in zip(weights, ratios, strict=True)]
        return _moved(path, s, x, [*known, end], shares)


def _moved(path: TimeGrid, s: int, x: Tensor, known: list[Tensor], shares: list[float]) -> Tensor:
    """The exact step with the first guess, less alpha times shares of the others' differences."""
    kept, new = data_weights(path, s, s + 1)
    first, *others = known
    alpha = path.alpha[s + 1]
    differences = [(other, -alpha * share) for other, share in zip(others, shares, strict=True)]
    return lincomb(x, kept, (first, new + alpha * sum(shares)), *differences)


def _conditions(path: TimeGrid, s: int, points: int) -> tuple[float, list[float], list[float]]:
    """B(h), the places of earlier guesses in steps, and the order conditions, 1 to p."""
    h = -lambda_step(path, s, s + 1)
    ratios = [lambda_step(path, s, s - back) / -h for back in range(1, points)]
    scale = math.expm1(h)
    moments, phi, factorial = [], scale / h - 1, 1
    for k in range(1, points + 1):
        moments.append(phi * factorial / scale)
        factorial *= k + 1
        phi = phi / h - 1 / factorial
    return scale, ratios, moments


def _solved(ratios: list[float], moments: list[float]) -> list[float]:
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
