"""Weights of the squared error of x_0 over time."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from models.diffusion.schedule import Marginal


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
