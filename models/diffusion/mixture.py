"""Mixtures of gaussians: data whose noisy densities, scores and best denoisers are known exactly.

They measure solvers, likelihoods and guidance without a network.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion.parameterization import Prediction, from_x0
from models.diffusion.schedules.marginal import Marginal, Schedule


@dataclass(frozen=True)
class Mixture:
    """K round gaussians in D dimensions."""

    means: Tensor
    """(K, D)."""
    deviations: Tensor
    """(K,)."""
    weights: Tensor
    """(K,), with sum 1."""

    def log_joint(self, x: Tensor, marginal: Marginal) -> Tensor:
        """ln p(x_t, component) (B, K) for x_t (B, D) at marginals of scalar shape or (B,)."""
        alpha, sigma = marginal.alpha.view(-1, 1), marginal.sigma.view(-1, 1)
        variance = alpha**2 * self.deviations**2 + sigma**2
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
        drawn = torch.multinomial(self.weights, count, replacement=True, generator=rng)
        noise = torch.randn(
            (count, self.means.shape[1]), generator=rng, dtype=self.means.dtype, device=rng.device
        )
        return self.means[drawn] + self.deviations[drawn, None] * noise

    def only(self, component: int) -> "Mixture":
        """One of the gaussians."""
        place = slice(component, component + 1)
        return Mixture(self.means[place], self.deviations[place], torch.ones_like(self.weights[:1]))


@dataclass(frozen=True)
class MixtureDenoiser:
    """E[x_0 | x_t], whatever the condition."""

    mixture: Mixture
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor, cond: object) -> Prediction:
        """Noisy (B, D) and times (B,) to a prediction."""
        here = self.schedule.at(t)
        alpha, sigma = here.alpha[:, None, None], here.sigma[:, None, None]
        data = self.mixture.deviations[:, None] ** 2
        pull = alpha * data / (alpha**2 * data + sigma**2)
        guesses = self.mixture.means + pull * (x[:, None] - alpha * self.mixture.means)
        odds = self.mixture.log_class(x, here).exp()
        return from_x0((odds[..., None] * guesses).sum(dim=1), x, here)
