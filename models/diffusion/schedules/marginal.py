"""What a schedule is: x_t = alpha(t) x_0 + sigma(t) noise, t from 0 (clean) to 1 (noise)."""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from pydantic import BaseModel
from torch import Tensor

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Marginal:
    """q(x_t | x_0) = N(alpha x_0, sigma^2); both fields have the shape of t."""

    alpha: Tensor
    sigma: Tensor

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2."""
        return (self.alpha / self.sigma) ** 2

    def broadcast_to(self, x: Tensor) -> "Marginal":
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
        here = self.broadcast_to(x0)
        return here.alpha * x0 + here.sigma * noise


class Schedule(Protocol):
    """Marginals of a diffusion at any time. It never changes: solvers cache its numbers."""

    def __hash__(self) -> int: ...

    def at(self, t: Tensor) -> Marginal:
        """The marginal at times in [0, 1]."""

    def log_snr(self, t: Tensor) -> Tensor:
        """ln(alpha^2 / sigma^2) at times in [0, 1]; decreasing in t."""

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        """The inverse of `log_snr`."""


def require_increasing(settings: M, low: str, high: str) -> M:
    """The settings, where the value of `low` is below that of `high`.

    Raises:
        ValueError: it is not.
    """
    if getattr(settings, low) >= getattr(settings, high):
        raise ValueError(f"{low} must be below {high}")
    return settings
