"""Mixtures of gaussians, whose noisy densities, scores and best denoisers are known exactly.

They measure solvers, likelihoods and guidance without a network.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion.likelihood import Field, Flow
from models.diffusion.parameterization import Prediction, from_x0
from models.diffusion.schedules.marginal import Marginal, Schedule


@dataclass(frozen=True)
class Mixture:
    """K round gaussians in D dimensions."""

    means: Tensor
    """(K, D)."""
    stds: Tensor
    """(K,)."""
    weights: Tensor
    """(K,), with sum 1."""

    def log_joint(self, x: Tensor, marginal: Marginal) -> Tensor:
        """ln p(x_t, component) (B, K) for x_t (B, D) at marginals of scalar shape or (B,)."""
        alpha, sigma = marginal.alpha.view(-1, 1), marginal.sigma.view(-1, 1)
        variance = alpha**2 * self.stds**2 + sigma**2
        gaps = (x[:, None] - alpha[..., None] * self.means).square().sum(dim=-1)
        size = self.means.shape[1]
        return self.weights.log() - 0.5 * (
            gaps / variance + size * (math.log(2 * math.pi) + variance.log())
        )

    def log_density(self, x: Tensor, marginal: Marginal) -> Tensor:
        """ln p(x_t), (B,)."""
        return self.log_joint(x, marginal).logsumexp(dim=1)

    def log_class(self, x: Tensor, marginal: Marginal) -> Tensor:
        """ln p(component | x_t), (B, K): the best noisy classifier."""
        return self.log_joint(x, marginal).log_softmax(dim=1)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """(count, D)."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=rng)
        noise = torch.randn(
            (count, self.means.shape[1]), generator=rng, dtype=self.means.dtype, device=rng.device
        )
        return self.means[component] + self.stds[component, None] * noise

    def only(self, component: int) -> "Mixture":
        """One of the gaussians."""
        one = slice(component, component + 1)
        return Mixture(self.means[one], self.stds[one], torch.ones_like(self.weights[:1]))


@dataclass(frozen=True)
class MixtureDenoiser:
    """E[x_0 | x_t], whatever the condition."""

    mixture: Mixture
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, condition: object) -> Prediction:
        """Noisy (B, D) and times (B,) to a prediction."""
        here = self.schedule.at(t)
        alpha, sigma = here.alpha[:, None, None], here.sigma[:, None, None]
        data = self.mixture.stds[:, None] ** 2
        pull = alpha * data / (alpha**2 * data + sigma**2)
        means = self.mixture.means + pull * (x[:, None] - alpha * self.mixture.means)
        odds = self.mixture.log_class(x, here).exp()
        return from_x0((odds[..., None] * means).sum(dim=1), x, here)


def score(pred: Prediction, marginal: Marginal) -> Tensor:
    """The gradient of ln q(x_t): -noise / sigma (arXiv 2011.13456, eq. 29 and Tweedie)."""
    return -pred.noise / marginal.broadcast_to(pred.noise).sigma


def exact_trace(field: Field, x: Tensor) -> Flow:
    """The trace of the Jacobian by one backward pass per dimension."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = field(point)
        flat = value.flatten(1)
        trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for axis in range(flat.shape[1]):
            (row,) = torch.autograd.grad(flat[:, axis].sum(), point, retain_graph=True)
            trace = trace + row.flatten(1)[:, axis]
    return Flow(value.detach(), trace)
