"""What a schedule is: x_t = alpha(t) x_0 + sigma(t) noise, t from 0 (clean) to 1 (noise)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Marginal:
    """q(x_t | x_0) = N(alpha x_0, sigma^2); both fields have the shape of t."""

    alpha: Tensor
    sigma: Tensor

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2."""
        return (self.alpha / self.sigma) ** 2

    def like(self, x: Tensor) -> "Marginal":
        """The same, shaped (B, 1, ...) to multiply `x` (B, ...); one for all stays as it is."""
        if self.alpha.shape == (1,):
            return self
        shape = (-1,) + (1,) * (x.ndim - 1)
        return Marginal(self.alpha.view(shape), self.sigma.view(shape))

    @property
    def log_snr(self) -> Tensor:
        """ln(alpha^2 / sigma^2): -inf without signal, inf without noise."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def add_noise(self, x0: Tensor, noise: Tensor) -> Tensor:
        """alpha x_0 + sigma noise for a batch (B, ...)."""
        here = self.like(x0)
        return here.alpha * x0 + here.sigma * noise


class Schedule(Protocol):
    """Marginals of a diffusion at any time. It never changes: solvers remember what it says."""

    def __hash__(self) -> int: ...

    def at(self, t: Tensor) -> Marginal:
        """The marginal at times in [0, 1]."""
        ...

    def log_snr(self, t: Tensor) -> Tensor:
        """ln(alpha^2 / sigma^2) at times in [0, 1]; falls with t."""
        ...

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""
        ...


@dataclass(frozen=True)
class Statistics:
    """A schedule in numbers, for plots; every field is (count,), fp64."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor
    snr: Tensor
    """alpha^2 / sigma^2."""
    log_snr: Tensor
    density: Tensor
    """-dt / d log_snr: how often training at uniform times visits a log signal-to-noise ratio
    (arXiv 2303.00848, section 3)."""


def statistics(schedule: Schedule, count: int = 1001) -> Statistics:
    """Signal and noise at `count` times, evenly in [0, 1]."""
    t = torch.linspace(0, 1, count, dtype=torch.float64, device="cpu")
    here = schedule.at(t)
    log_snr = schedule.log_snr(t)
    slope = torch.gradient(log_snr, spacing=(t,))[0]
    return Statistics(t, here.alpha, here.sigma, here.snr, log_snr, -1 / slope)
