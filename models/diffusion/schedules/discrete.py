"""Schedules of discrete steps, given by their betas (steps,) (DDPM, arXiv 2006.11239, eq. 2 to 4).

Step k of N is the time k / N, so t = 0 is the clean image itself (alpha 1, sigma 0) and t = 1 the
last step. Between steps alpha is linear in t. A peer that counts its steps from 0 calls time
(k + 1) / N its step k.
"""

import math
from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from models.diffusion.schedules.marginal import Marginal


class LinearBetasConfig(BaseModel, frozen=True, extra="forbid"):
    """Betas in equal steps: DDPM's are 1e-4 to 0.02."""

    kind: Literal["linear"] = "linear"
    first: float = Field(default=1e-4, gt=0, lt=1)
    last: float = Field(default=0.02, gt=0, lt=1)

    def betas(self, steps: int) -> Tensor:
        return torch.linspace(self.first, self.last, steps, dtype=torch.float64, device="cpu")


class SqrtLinearBetasConfig(BaseModel, frozen=True, extra="forbid"):
    """Square roots of betas in equal steps: latent diffusion's (arXiv 2112.10752)."""

    kind: Literal["sqrt_linear"] = "sqrt_linear"
    first: float = Field(default=0.00085, gt=0, lt=1)
    last: float = Field(default=0.012, gt=0, lt=1)

    def betas(self, steps: int) -> Tensor:
        ends = math.sqrt(self.first), math.sqrt(self.last)
        return torch.linspace(*ends, steps, dtype=torch.float64, device="cpu") ** 2


class CosineBetasConfig(BaseModel, frozen=True, extra="forbid"):
    """alpha^2 = cos^2((t + s) / (1 + s) pi / 2), betas capped (arXiv 2102.09672, eq. 17)."""

    kind: Literal["cosine"] = "cosine"
    offset: float = Field(default=0.008, ge=0)
    cap: float = Field(default=0.999, gt=0, lt=1)

    def betas(self, steps: int) -> Tensor:
        t = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
        kept = ((t + self.offset) / (1 + self.offset) * (math.pi / 2)).cos() ** 2
        return (1 - kept[1:] / kept[:-1]).clamp(max=self.cap)


BetasConfig = Annotated[
    LinearBetasConfig | SqrtLinearBetasConfig | CosineBetasConfig, Field(discriminator="kind")
]


class DiscreteSchedule(BaseModel, frozen=True, extra="forbid"):
    """Betas of `steps` steps: alpha^2 after step k is the product of the first k (1 - beta).

    `zero_terminal_snr` moves the last step to pure noise (arXiv 2305.08891, algorithm 1); the
    network must then predict v or x0, and be sampled by DDIM or DDPM.
    """

    kind: Literal["discrete"] = "discrete"
    betas: BetasConfig = LinearBetasConfig()
    steps: int = Field(default=1000, gt=1)
    zero_terminal_snr: bool = False

    def at(self, t: Tensor) -> Marginal:
        alpha = self._alpha(t)
        return Marginal(alpha.to(t.dtype), ((1 - alpha) * (1 + alpha)).sqrt().to(t.dtype))

    def log_snr(self, t: Tensor) -> Tensor:
        """ln(alpha^2 / sigma^2): inf at 0."""
        alpha = self._alpha(t)
        return (2 * alpha.log() - ((1 - alpha) * (1 + alpha)).log()).to(t.dtype)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        alpha = log_snr.to(torch.float64).sigmoid().sqrt()
        table = _alphas(self).to(alpha.device)
        index = torch.searchsorted(-table, -alpha, right=True) - 1
        index = index.clamp(0, self.steps - 1)
        fraction = (table[index] - alpha) / (table[index] - table[index + 1])
        return ((index + fraction) / self.steps).to(log_snr.dtype)

    def _alpha(self, t: Tensor) -> Tensor:
        table = _alphas(self).to(t.device)
        position = t.to(torch.float64) * self.steps
        index = position.floor().clamp(0, self.steps - 1).long()
        fraction = position - index
        return torch.lerp(table[index], table[index + 1], fraction)


@lru_cache(maxsize=32)
def _alphas(schedule: DiscreteSchedule) -> Tensor:
    """alpha at steps 0 to N, computed once."""
    # cached: a table made under inference mode could not be used in training afterwards
    with torch.inference_mode(mode=False):
        betas = schedule.betas.betas(schedule.steps)
        if schedule.zero_terminal_snr:
            betas = zero_terminal_snr(betas)
        return torch.cat([betas.new_ones(1), (1 - betas).cumprod(0).sqrt()])


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas (N,) whose alpha keeps its first value and ends at 0 (arXiv 2305.08891, alg. 1)."""
    alphas = (1 - betas).cumprod(0).sqrt()
    first, last = alphas[0], alphas[-1]
    kept = ((alphas - last) * first / (first - last)) ** 2
    return 1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])
