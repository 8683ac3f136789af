"""The training losses of diffusion networks."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from models.diffusion.condition import Condition
from models.diffusion.parameterization import Prediction
from models.diffusion.process import Process
from models.diffusion.variational_bound import vlb_terms
from models.diffusion.weighting import Weighting

Network = Callable[[Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True)
class PerSampleLoss:
    """The loss of each sample of a batch."""

    value: Tensor
    """(B,): the loss to minimise is its mean, where times are uniform."""
    metrics: Mapping[str, Tensor]
    """(B,) each."""


def denoising_loss(
    network: Network,
    process: Process,
    x0: Tensor,
    condition: Condition,
    t: Tensor,
    noise: Tensor,
    weight: Weighting,
) -> PerSampleLoss:
    """weight(t) |x_0 - prediction|^2 per value, in fp32, at times (B,) with noise (B, ...).

    `x0_mse` is the same without the weight.
    """
    x = process.add_noise(x0, t, noise)
    raw = network(process.input(x, t), t, condition).float()
    mse = _mse(process.prediction(raw, x, t).x0, x0)
    return PerSampleLoss(weight(process.schedule.at(t)) * mse, {"x0_mse": mse})


def simple_loss(
    network: Network, process: Process, x0: Tensor, condition: Condition, t: Tensor, noise: Tensor
) -> PerSampleLoss:
    """|target - raw|^2 per value of what the network itself predicts, in fp32.

    For noise it is L_simple (arXiv 2006.11239, eq. 14), and needs no division where sigma is small.
    """
    x = process.add_noise(x0, t, noise)
    raw = network(process.input(x, t), t, condition).float()
    output, *_ = raw.chunk(process.config.outputs, dim=1)
    simple = _mse(output, process.target(x0, t, noise))
    return PerSampleLoss(simple, {"simple": simple})


def hybrid_loss(
    network: Network,
    process: Process,
    x0: Tensor,
    condition: Condition,
    t: Tensor,
    noise: Tensor,
    *,
    steps: int = 1000,
    vlb_weight: float = 0.001,
) -> PerSampleLoss:
    """L_hybrid = L_simple + lambda L_vlb of learned variances (arXiv 2102.09672, eq. 16).

    At times (B,) of a chain of `steps` steps, L_vlb = steps x the term from t to t - 1 / steps; the
    term moves the variance only, no gradient of it reaches the mean. `vlb_weight` is lambda, for
    bits per value, as in the released code. `bound_bits` is L_vlb.

    Raises:
        ValueError: the process has fixed variances.
    """
    if process.config.variance != "learned":
        raise ValueError("the hybrid loss needs process.variance: learned")
    x = process.add_noise(x0, t, noise)
    raw = network(process.input(x, t), t, condition).float()
    output, _ = raw.chunk(2, dim=1)
    simple = _mse(output, process.target(x0, t, noise))
    pred = process.prediction(raw, x, t)
    fixed_mean = Prediction(pred.x0.detach(), pred.noise.detach(), pred.logvar_fraction)
    # half a step's tolerance: the first step ends at 0 whatever fp32 makes of t
    s = t.double() - 1 / steps
    s = s.where(s > 0.5 / steps, 0.0)
    bound = steps * vlb_terms(fixed_mean, process.schedule, x0, x, t, s).float() / math.log(2)
    return PerSampleLoss(simple + vlb_weight * bound, {"simple": simple, "bound_bits": bound})


def _mse(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared differences (B,) of (B, ...)."""
    return (one - other).square().flatten(1).mean(dim=1)
