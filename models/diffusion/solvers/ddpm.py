"""Ancestral sampling (DDPM, arXiv 2006.11239)."""

from typing import TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedule import Schedule
from models.diffusion.solvers.solver import Progress
from models.nn.random import normal_like

C = TypeVar("C")


class DDPM:
    """Draws x_s from q(x_s | x_t, x_0 = guess) for s < t (eq. 6 and 7, between any two times).

    With alpha_ts = alpha_t / alpha_s and var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2 the mean is
    alpha_ts sigma_s^2 / sigma_t^2 x_t + alpha_s var_ts / sigma_t^2 x_0 and the variance
    var_ts sigma_s^2 / sigma_t^2; a denoiser that learns it says where the log variance lies between
    that one's and var_ts's (arXiv 2102.09672, eq. 15).
    """

    order = 1

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def solve(
        self,
        denoiser: Denoiser[C],
        x: Tensor,
        times: Tensor,
        cond: C,
        rng: Generator,
        progress: Progress | None = None,
    ) -> Tensor:
        """From x (B, ...) at times[0] to x at times[-1].

        Raises:
            ValueError: times that do not fall.
        """
        times = times.to(x.device)
        if not bool((times.diff() < 0).all()):
            raise ValueError("ancestral sampling needs falling times")
        marginals = self._schedule.at(times)
        total = len(times) - 1
        for step in range(total):
            guess = denoiser(x, times[step].to(x.dtype).expand(len(x)), cond)
            alpha_t, alpha_s = marginals.alpha[step], marginals.alpha[step + 1]
            var_t, var_s = marginals.sigma[step] ** 2, marginals.sigma[step + 1] ** 2
            alpha_ts = alpha_t / alpha_s
            var_ts = var_t - alpha_ts**2 * var_s
            kept, new = alpha_ts * var_s / var_t, alpha_s * var_ts / var_t
            mean = kept.to(x.dtype) * x + new.to(x.dtype) * guess.x0
            deviation = (var_ts * var_s / var_t).clamp(min=0).sqrt().to(x.dtype)
            if guess.spread is not None:
                # a^(1 - v) b^v of two deviations, whose ratio b / a is sigma_t / sigma_s
                deviation = deviation * (var_t / var_s).sqrt().to(x.dtype) ** guess.spread
            x = mean + deviation * normal_like(x, rng)
            if progress is not None:
                progress(step + 1, total)
        return x
