"""The training loss of every diffusion network here."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from models.diffusion.condition import Condition
from models.diffusion.process import Process
from models.diffusion.weighting import Weighting


@dataclass(frozen=True)
class DenoisingLoss:
    """Errors of one batch; the loss to minimise is `value.mean()`."""

    value: Tensor
    """(B,): weighted squared error of x_0, per value."""
    mse: Tensor
    """(B,): the same, unweighted."""


def denoising_loss(
    network: Callable[[Tensor, Tensor, Condition], Tensor],
    process: Process,
    x0: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    weight: Weighting,
) -> DenoisingLoss:
    """weight(t) |x0 - x0_hat|^2 per sample, in fp32, at given times (B,) and noise (B, ...)."""
    x = process.noisy(x0, t, noise)
    guess = process.prediction(network(x, t, cond).float(), x, t).x0
    mse = (guess - x0).square().flatten(1).mean(dim=1)
    return DenoisingLoss(weight(process.schedule.at(t)) * mse, mse)
