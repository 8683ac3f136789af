"""Weights of the squared error of x_0 over time.

A weight of the squared noise error, as most papers state theirs, is multiplied by the
signal-to-noise ratio: |noise - guess|^2 = snr |x_0 - guess|^2.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from models.diffusion.marginal import Marginal


class Weighting(Protocol):
    """Weight of the squared x_0 error at a marginal."""

    def __call__(self, marginal: Marginal) -> Tensor:
        """(B,)."""
        ...


@dataclass(frozen=True)
class SnrClamped:
    """The signal-to-noise ratio, clamped to [low, high].

    Unclamped it is the plain noise-prediction loss; the upper clamp is min-SNR (arXiv 2303.09556),
    the lower one keeps very noisy times in play.
    """

    low: float
    high: float

    def __call__(self, marginal: Marginal) -> Tensor:
        """Weights (B,)."""
        return marginal.snr.clamp(self.low, self.high)


@dataclass(frozen=True)
class Snr:
    """The squared error of the noise: DDPM's simple loss (arXiv 2006.11239, eq. 14)."""

    def __call__(self, marginal: Marginal) -> Tensor:
        """Weights (B,)."""
        return marginal.snr


@dataclass(frozen=True)
class MinSnr:
    """min(snr, gamma) (arXiv 2303.09556, section 3.4)."""

    gamma: float = 5.0

    def __call__(self, marginal: Marginal) -> Tensor:
        """Weights (B,)."""
        return marginal.snr.clamp(max=self.gamma)


@dataclass(frozen=True)
class VLoss:
    """The squared error of v: snr + 1 (arXiv 2202.00512, section 4)."""

    def __call__(self, marginal: Marginal) -> Tensor:
        """Weights (B,)."""
        return marginal.snr + 1


@dataclass(frozen=True)
class P2:
    """1 / (k + snr)^gamma of the noise error (arXiv 2204.00227, eq. 8)."""

    gamma: float = 1.0
    k: float = 1.0

    def __call__(self, marginal: Marginal) -> Tensor:
        """Weights (B,)."""
        return marginal.snr / (self.k + marginal.snr) ** self.gamma


@dataclass(frozen=True)
class EDM:
    """(u^2 + s^2) / (u s)^2 at noise level u = sigma / alpha (arXiv 2206.00364, table 1).

    s is the standard deviation of the data; in other words snr + 1 / s^2.
    """

    deviation: float = 0.5

    def __call__(self, marginal: Marginal) -> Tensor:
        """Weights (B,)."""
        return marginal.snr + 1 / self.deviation**2
