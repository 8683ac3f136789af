"""Ancestral sampling (DDPM, arXiv 2006.11239)."""

import math
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch
from torch import Generator, Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.solver import (
    IterativeSolver,
    SolverStep,
    TimeGrid,
    call_denoiser,
    require_decreasing,
    time_grid,
)
from models.nn.random import randn_like

C = TypeVar("C")


class DDPM(IterativeSolver):
    """Draws x_s from q(x_s | x_t, x_0 = guess) for s < t (eq. 6 and 7, between any two times).

    With alpha_ts = alpha_t / alpha_s and var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2 the mean is
    alpha_ts sigma_s^2 / sigma_t^2 x_t + alpha_s var_ts / sigma_t^2 x_0. The variance is
    `smallest`, var_ts sigma_s^2 / sigma_t^2, or `largest`, var_ts (section 3.2); a denoiser that
    learns it says where the log variance lies between the two (arXiv 2102.09672, eq. 15). A step to
    a time without noise adds none.

    `gradient` of (x, t) moves the mean by variance x gradient: classifier guidance
    (arXiv 2105.05233, algorithm 1; `guidance.classifier_gradient` makes one).
    """

    order = 1

    def __init__(
        self,
        schedule: Schedule,
        variance: Literal["smallest", "largest"] = "smallest",
        gradient: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self._schedule = schedule
        self._largest = variance == "largest"
        self._gradient = gradient

    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """From x (B, ...) at times[0] to x at times[-1].

        Raises:
            ValueError: times that do not fall.
        """
        require_decreasing(times, "ancestral sampling")
        path = time_grid(self._schedule, times)
        for step in range(path.total):
            guess = call_denoiser(denoiser, x, path.t[step], cond)
            alpha_t, alpha_s = path.alpha[step : step + 2]
            var_t, var_s = (sigma * sigma for sigma in path.sigma[step : step + 2])
            alpha_ts = alpha_t / alpha_s
            var_ts = var_t - alpha_ts * alpha_ts * var_s
            kept, new = alpha_ts * var_s / var_t, alpha_s * var_ts / var_t
            mean = kept * x + new * guess.x0
            deviation = self._deviation(path, step, guess)
            if self._gradient is not None:
                slope = self._gradient(x, x.new_full((len(x),), path.t[step]))
                mean = mean + deviation**2 * slope
            x = mean
            if not path.ends_clean(step + 1):
                x = mean + deviation * randn_like(x, rng)
            yield SolverStep(step + 1, path.total, path.t[step + 1], x, guess)

    def _deviation(self, path: TimeGrid, step: int, guess: Prediction) -> Tensor | float:
        """Standard deviation of the step, a number or one per value (B, ...)."""
        alpha_ts = path.alpha[step] / path.alpha[step + 1]
        var_t, var_s = (sigma * sigma for sigma in path.sigma[step : step + 2])
        var_ts = max(var_t - alpha_ts * alpha_ts * var_s, 0.0)
        smallest = math.sqrt(max(var_ts * var_s / var_t, 0.0))
        if path.ends_clean(step + 1):
            return smallest
        if guess.logvar_fraction is not None:
            # a^(1 - v) b^v of two deviations, whose ratio b / a is sigma_t / sigma_s
            return smallest * torch.pow(math.sqrt(var_t / var_s), guess.logvar_fraction)
        return math.sqrt(var_ts) if self._largest else smallest
