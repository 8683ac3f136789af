"""What a network predicts, and what follows from it: x_t = alpha x_0 + sigma noise."""

from dataclasses import dataclass

from torch import Tensor

from models.diffusion.schedule import Marginal


@dataclass(frozen=True)
class Prediction:
    """A denoiser's guess; x_0 and noise always belong together through x_t."""

    x0: Tensor
    noise: Tensor
    spread: Tensor | None = None
    """Where a network learns the variance of reverse steps: the log variance's place between the
    smallest (0) and the largest (1) sensible one (arXiv 2102.09672, eq. 15)."""


def from_x0(raw: Tensor, x: Tensor, marginal: Marginal) -> Prediction:
    """noise = (x_t - alpha x_0) / sigma."""
    here = marginal.like(x)
    return Prediction(raw, (x - here.alpha * raw) / here.sigma)


def from_noise(raw: Tensor, x: Tensor, marginal: Marginal) -> Prediction:
    """x_0 = (x_t - sigma noise) / alpha (arXiv 2006.11239, eq. 15)."""
    here = marginal.like(x)
    return Prediction((x - here.sigma * raw) / here.alpha, raw)


def from_v(raw: Tensor, x: Tensor, marginal: Marginal) -> Prediction:
    """v = alpha noise - sigma x_0, so x_0 = alpha x_t - sigma v (arXiv 2202.00512, appendix D)."""
    here = marginal.like(x)
    return Prediction(here.alpha * x - here.sigma * raw, here.sigma * x + here.alpha * raw)
