"""The training losses of diffusion networks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from models.diffusion.condition import Condition
from models.diffusion.parameterization import Prediction
from models.diffusion.process import Process
from models.diffusion.variational_bound import bound_terms
from models.diffusion.weighting import Weighting

Network = Callable[[Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True)
class DenoisingLoss:
    """Errors of one batch; the loss to minimise is `value.mean()`."""

    value: Tensor
    """(B,): weighted squared error of x_0, per value."""
    mse: Tensor
    """(B,): the same, unweighted."""


def denoising_loss(
    network: Network,
    process: Process,
    x0: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    weight: Weighting,
) -> DenoisingLoss:
    """weight(t) |x0 - x0_hat|^2 per sample, in fp32, at given times (B,) and noise (B, ...)."""
    x = process.add_noise(x0, t, noise)
    raw = network(process.input(x, t), t, cond).float()
    guess = process.prediction(raw, x, t).x0
    mse = (guess - x0).square().flatten(1).mean(dim=1)
    return DenoisingLoss(weight(process.schedule.at(t)) * mse, mse)


def simple_loss(
    network: Network, process: Process, x0: Tensor, cond: Condition, t: Tensor, noise: Tensor
) -> Tensor:
    """|target - raw|^2 per value, (B,), of what the network itself predicts.

    For noise it is L_simple (arXiv 2006.11239, eq. 14), and needs no division where sigma is small.
    """
    x = process.add_noise(x0, t, noise)
    raw = network(process.input(x, t), t, cond).float()
    aim, *_ = raw.chunk(process.config.outputs, dim=1)
    return (aim - process.target(x0, t, noise)).square().flatten(1).mean(dim=1)


@dataclass(frozen=True)
class HybridLoss:
    """L_hybrid = L_simple + lambda L_vlb (arXiv 2102.09672, eq. 16), each (B,)."""

    value: Tensor
    """The loss to minimise is its mean."""
    simple: Tensor
    bound: Tensor
    """One term of the variational bound, in bits per value; N of them make the bound."""


def hybrid_loss(
    network: Network,
    process: Process,
    x0: Tensor,
    cond: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    steps: int = 1000,
    vlb_weight: float = 0.001,
) -> HybridLoss:
    """The loss of learned variances, at times (B,) of a chain of `steps` steps.

    L_vlb = steps x the term from t to t - 1 / steps; the term moves the variance only, no gradient
    of it reaches the mean. `vlb_weight` is lambda, for bits per value, as in the released code.

    Raises:
        ValueError: the process has fixed variances.
    """
    if process.config.variance != "learned":
        raise ValueError("the hybrid loss needs process.variance: learned")
    x = process.add_noise(x0, t, noise)
    raw = network(process.input(x, t), t, cond).float()
    aim, _ = raw.chunk(process.config.outputs, dim=1)
    simple = (aim - process.target(x0, t, noise)).square().flatten(1).mean(dim=1)
    guess = process.prediction(raw, x, t)
    still = Prediction(guess.x0.detach(), guess.noise.detach(), guess.logvar_fraction)
    # half a step's tolerance: the first step ends at 0 whatever fp32 makes of t
    s = t.double() - 1 / steps
    s = s.where(s > 0.5 / steps, 0.0)
    bits = bound_terms(still, process.schedule, x0, x, t, s).float() / math.log(2)
    return HybridLoss(simple + vlb_weight * steps * bits, simple, bits)
