"""Predictor-corrector sampling of score-based SDEs (arXiv 2011.13456, algorithms 2 to 5)."""

import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    call_denoiser,
    require_decreasing,
    time_grid,
)
from models.nn.random import randn_like

C = TypeVar("C")


class PredictorCorrector(IterativeSolver):
    """Langevin steps at a time, then a reverse-diffusion step to the next.

    Both act on x / alpha with level u = sigma / alpha, where every process is the paper's VE
    (appendix E), its score -noise / u. The last step adds no noise.
    """

    order = 1

    def __init__(self, schedule: Schedule, corrections: int = 1, snr: float = 0.16) -> None:
        """`corrections` Langevin steps a time, of the paper's signal-to-noise ratio r `snr`."""
        self._schedule = schedule
        self._corrections = corrections
        self._snr = snr

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1].

        Raises:
            ValueError: times that do not fall.
        """
        require_decreasing(times, "predictor-corrector sampling")
        path = time_grid(self._schedule, times)
        for step in range(path.total):
            now, then, alpha = path.ratio(step), path.ratio(step + 1), path.alpha[step]
            scaled = x / alpha
            for _ in range(self._corrections):
                guess = call_denoiser(denoiser, alpha * scaled, path.t[step], cond)
                scaled = self._langevin(scaled, guess.noise / -now, rng)
            guess = call_denoiser(denoiser, alpha * scaled, path.t[step], cond)
            fresh = now * now - then * then
            scaled = scaled - fresh / now * guess.noise
            if step + 1 < path.total:
                scaled = scaled + math.sqrt(fresh) * randn_like(x, rng)
            x = path.alpha[step + 1] * scaled
            yield SolverStep(step + 1, path.total, path.t[step + 1], x, guess)

    def _langevin(self, scaled: Tensor, score: Tensor, rng: Generator) -> Tensor:
        """Algorithm 4 or 5; the step's size is one for the batch, 2 (r |noise| / |score|)^2."""
        noise = randn_like(scaled, rng)
        sizes = (_length(noise) / _length(score) * self._snr) ** 2 * 2
        return scaled + sizes * score + torch.sqrt(2 * sizes) * noise


def _length(values: Tensor) -> Tensor:
    """The mean over the batch of the norms of (B, ...)."""
    return values.flatten(1).norm(dim=1).mean()
