"""The terms of the variational bound on -ln p(x_0), in nats per value.

DDPM (arXiv 2006.11239, eq. 5): a divergence for every reverse step, and a decoder that gives pixels
of 2^8 levels in [-1, 1] their probability. Learned variances as in arXiv 2102.09672, section 3.1.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.schedules.marginal import Marginal, Schedule


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution per value, both (B, ...) or broadcast to it."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class ReverseStep:
    """From a time t to an earlier one s: coefficients of q(x_s | x_t, x_0), each (B,)."""

    coef_x: Tensor
    """alpha_ts sigma_s^2 / sigma_t^2, of x_t in the mean."""
    coef_x0: Tensor
    """alpha_s var_ts / sigma_t^2, of x_0."""
    log_var_max: Tensor
    """ln var_ts, var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2."""
    log_var_min: Tensor
    """ln(var_ts sigma_s^2 / sigma_t^2)."""

    def broadcast_to(self, x: Tensor) -> "ReverseStep":
        """The same, shaped (B, 1, ...) to multiply `x`."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        return ReverseStep(*(value.view(shape) for value in vars(self).values()))


def reverse_step(now: Marginal, then: Marginal) -> ReverseStep:
    """The step between marginals (B,); in fp64 it keeps small variances."""
    ratio = now.alpha / then.alpha
    var_t, var_s = now.sigma**2, then.sigma**2
    var_ts = var_t - ratio**2 * var_s
    return ReverseStep(
        ratio * var_s / var_t,
        then.alpha * var_ts / var_t,
        var_ts.log(),
        (var_ts * var_s / var_t).log(),
    )


def posterior(
    x0: Tensor, x: Tensor, step: ReverseStep, logvar_fraction: Tensor | None = None
) -> Gaussian:
    """q(x_s | x_t, x_0) (arXiv 2006.11239, eq. 6 and 7).

    With a fraction v, ln variance is v log_var_max + (1 - v) log_var_min (2102.09672, eq. 15).
    """
    here = step.broadcast_to(x)
    mean = here.coef_x * x + here.coef_x0 * x0
    if logvar_fraction is None:
        return Gaussian(mean, here.log_var_min)
    v = logvar_fraction
    return Gaussian(mean, v * here.log_var_max + (1 - v) * here.log_var_min)


def kl_divergence(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p || q) per value, in nats."""
    gap = (p.mean - q.mean) ** 2 * torch.exp(-q.log_variance)
    log_ratio = p.log_variance - q.log_variance
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + gap)


def discretized_log_likelihood(x0: Tensor, p: Gaussian, levels: int = 256) -> Tensor:
    """ln of the probability of the bin around x_0, per value (arXiv 2006.11239, eq. 13).

    The bins are 2 / (levels - 1) wide, those at -1 and 1 reach to infinity. By the exact normal
    distribution function, in fp64.
    """
    x, mean = x0.double(), p.mean.double()
    precision = torch.exp(-0.5 * p.log_variance.double())
    half = 1 / (levels - 1)
    above, below = (x - mean + half) * precision, (x - mean - half) * precision
    # the difference of the smaller tails: mirror the bins that lie above the mean
    mirrored = below > 0
    high = torch.where(mirrored, -below, above)
    low = torch.where(mirrored, -above, below)
    edge = 1 - 1e-3 * half
    last = torch.special.log_ndtr(-below)
    first = torch.special.log_ndtr(above)
    ln_high, ln_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    inner = ln_high + torch.log(-torch.expm1((ln_low - ln_high).clamp(max=-1e-300)))
    return torch.where(x < -edge, first, torch.where(x > edge, last, inner))


def vlb_terms(
    pred: Prediction, schedule: Schedule, x0: Tensor, x: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)), where s is 0 -ln p(x_0 | x_t): (B,), nats per value.

    At s = 0 the mean is the predicted x_0. Where no noise is left there, ln 0 is no lower end for
    learned variances, and the step before it lends its own (arXiv 2102.09672's released code).
    """
    t, s = t.double(), s.double()
    step = reverse_step(schedule.at(t), schedule.at(s))
    finite = torch.isfinite(step.log_var_min)
    if not bool(finite.all()):
        lent = reverse_step(schedule.at(torch.where(finite, t, 2 * t)), schedule.at(t)).log_var_min
        step = replace(step, log_var_min=torch.where(finite, step.log_var_min, lent))
    model = posterior(pred.x0, x.double(), step, pred.logvar_fraction)
    truth = posterior(x0.double(), x.double(), step)
    kl = kl_divergence(truth, model).flatten(1).mean(dim=1)
    decoder = -discretized_log_likelihood(x0, model).flatten(1).mean(dim=1)
    return torch.where(s <= 0, decoder, kl)
