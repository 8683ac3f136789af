"""The terms of the variational bound on -ln p(x_0), in nats per value.

DDPM (arXiv 2006.11239, eq. 5): a prior term, a divergence for every reverse step, and a decoder
that gives pixels of 2^8 levels in [-1, 1] their probability. Learned variances as in arXiv
2102.09672, section 3.1.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Generator, Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Marginal, Schedule
from models.nn.random import randn_like

C = TypeVar("C")


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution per value, both (B, ...) or broadcast to it."""

    mean: Tensor
    log_variance: Tensor


@dataclass(frozen=True)
class Reverse:
    """From a time t to an earlier one s; the noise of q(x_t | x_s) and of q(x_s | x_t, x_0)."""

    kept: Tensor
    """alpha_ts sigma_s^2 / sigma_t^2, the share of x_t in the mean."""
    new: Tensor
    """alpha_s var_ts / sigma_t^2, the share of x_0."""
    largest: Tensor
    """ln var_ts, var_ts = sigma_t^2 - alpha_ts^2 sigma_s^2."""
    smallest: Tensor
    """ln(var_ts sigma_s^2 / sigma_t^2)."""

    def like(self, x: Tensor) -> "Reverse":
        """The same, shaped (B, 1, ...) to multiply `x`."""
        shape = (-1,) + (1,) * (x.ndim - 1)
        return Reverse(*(value.view(shape) for value in vars(self).values()))


def reverse(now: Marginal, then: Marginal) -> Reverse:
    """The step between marginals (B,); in fp64 it keeps small variances."""
    ratio = now.alpha / then.alpha
    var_t, var_s = now.sigma**2, then.sigma**2
    fresh = var_t - ratio**2 * var_s
    return Reverse(
        ratio * var_s / var_t,
        then.alpha * fresh / var_t,
        fresh.log(),
        (fresh * var_s / var_t).log(),
    )


def posterior(x0: Tensor, x: Tensor, step: Reverse) -> Gaussian:
    """q(x_s | x_t, x_0) (arXiv 2006.11239, eq. 6 and 7)."""
    here = step.like(x)
    return Gaussian(here.kept * x + here.new * x0, here.smallest)


def learned(guess: Prediction, x: Tensor, step: Reverse) -> Gaussian:
    """p(x_s | x_t): the mean from the guess, ln variance v largest + (1 - v) smallest.

    v is `guess.spread` (arXiv 2102.09672, eq. 15); without one the variance is the smallest.
    """
    here = step.like(x)
    mean = here.kept * x + here.new * guess.x0
    if guess.logvar_fraction is None:
        return Gaussian(mean, here.smallest)
    return Gaussian(
        mean, guess.logvar_fraction * here.largest + (1 - guess.logvar_fraction) * here.smallest
    )


def divergence(p: Gaussian, q: Gaussian) -> Tensor:
    """KL(p || q) per value, in nats."""
    gap = (p.mean - q.mean) ** 2 * torch.exp(-q.log_variance)
    narrowing = p.log_variance - q.log_variance
    return 0.5 * (torch.expm1(narrowing) - narrowing + gap)


def log_probability(x0: Tensor, p: Gaussian, levels: int = 256) -> Tensor:
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


def bound_terms(
    guess: Prediction, schedule: Schedule, x0: Tensor, x: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)), where s is 0 -ln p(x_0 | x_t): (B,), nats per value.

    At s = 0 the mean is the guess of x_0. Where no noise is left there, ln 0 is no lower end for
    learned variances, and the step before it lends its own (arXiv 2102.09672's released code).
    """
    t, s = t.double(), s.double()
    step = reverse(schedule.at(t), schedule.at(s))
    finite = torch.isfinite(step.smallest)
    if not bool(finite.all()):
        lent = reverse(schedule.at(torch.where(finite, t, 2 * t)), schedule.at(t)).smallest
        smallest = torch.where(finite, step.smallest, lent)
        step = Reverse(step.kept, step.new, step.largest, smallest)
    model = learned(guess, x.double(), step)
    truth = posterior(x0.double(), x.double(), step)
    kl = divergence(truth, model).flatten(1).mean(dim=1)
    decoder = -log_probability(x0, model).flatten(1).mean(dim=1)
    return torch.where(s <= 0, decoder, kl)


def prior_term(x0: Tensor, schedule: Schedule) -> Tensor:
    """KL(q(x_1 | x_0) || N(0, sigma(1)^2 + alpha(1)^2)): (B,), nats per value."""
    end = schedule.at(torch.ones((), dtype=torch.float64, device=x0.device))
    truth = Gaussian(end.alpha * x0.double(), 2 * end.sigma.log())
    wide = (end.alpha**2 + end.sigma**2).log()
    return divergence(truth, Gaussian(torch.zeros_like(x0), wide)).flatten(1).mean(dim=1)


@dataclass(frozen=True)
class Bound:
    """The bound on -ln p(x_0), one draw of noise a term; (B,) in nats per value."""

    prior: Tensor
    steps: Tensor
    """(n, B): the terms in the order of the times, the last of them the decoder's."""

    @property
    def total(self) -> Tensor:
        """(B,)."""
        return self.prior + self.steps.sum(dim=0)

    @property
    def bits(self) -> Tensor:
        """Bits per value (B,)."""
        return self.total / math.log(2)


def variational_bound(
    denoiser: Denoiser[C], schedule: Schedule, x0: Tensor, times: Tensor, cond: C, rng: Generator
) -> Bound:
    """The bound over falling times from 1 to 0, with a fresh x_t for every term."""
    terms = []
    for now, then in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        t, s = x0.new_full((len(x0),), now), x0.new_full((len(x0),), then)
        x = schedule.at(t).add_noise(x0, randn_like(x0, rng))
        terms.append(bound_terms(denoiser(x, t, cond), schedule, x0, x, t, s))
    return Bound(prior_term(x0, schedule), torch.stack(terms))
