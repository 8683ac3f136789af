"""Weights of the squared error of x_0 over time.

A weight of the squared noise error, as most papers state theirs, is multiplied by the
signal-to-noise ratio: |noise - predicted noise|^2 = snr |x_0 - predicted x_0|^2.
"""

from collections.abc import Callable
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from models.diffusion.schedules.marginal import Marginal, Schedule

Weighting = Callable[[Marginal], Tensor]
"""Weights (B,) of the squared x_0 error at a marginal."""


class SnrClamped(BaseModel, frozen=True, extra="forbid"):
    """The signal-to-noise ratio, clamped to [low, high].

    Unclamped it is the plain noise-prediction loss; the upper clamp is min-SNR (arXiv 2303.09556),
    the lower one keeps very noisy times in play.
    """

    kind: Literal["snr_clamped"] = "snr_clamped"
    low: float = Field(default=0.05, gt=0)
    high: float = Field(default=5.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self

    def __call__(self, marginal: Marginal) -> Tensor:
        return marginal.snr.clamp(self.low, self.high)


class Snr(BaseModel, frozen=True, extra="forbid"):
    """The squared error of the noise: DDPM's simple loss (arXiv 2006.11239, eq. 14)."""

    kind: Literal["snr"] = "snr"

    def __call__(self, marginal: Marginal) -> Tensor:
        return marginal.snr


class MinSnr(BaseModel, frozen=True, extra="forbid"):
    """min(snr, gamma) (arXiv 2303.09556, section 3.4)."""

    kind: Literal["min_snr"] = "min_snr"
    gamma: float = Field(default=5.0, gt=0)

    def __call__(self, marginal: Marginal) -> Tensor:
        return marginal.snr.clamp(max=self.gamma)


class VLoss(BaseModel, frozen=True, extra="forbid"):
    """The squared error of v: snr + 1 (arXiv 2202.00512, section 4)."""

    kind: Literal["v"] = "v"

    def __call__(self, marginal: Marginal) -> Tensor:
        return marginal.snr + 1


class P2(BaseModel, frozen=True, extra="forbid"):
    """1 / (k + snr)^gamma of the noise error (arXiv 2204.00227, eq. 8)."""

    kind: Literal["p2"] = "p2"
    gamma: float = Field(default=1.0, ge=0)
    k: float = Field(default=1.0, gt=0)

    def __call__(self, marginal: Marginal) -> Tensor:
        return marginal.snr / (self.k + marginal.snr) ** self.gamma


class EDM(BaseModel, frozen=True, extra="forbid"):
    """(u^2 + s^2) / (u s)^2 at noise level u = sigma / alpha (arXiv 2206.00364, table 1).

    s is the standard deviation of the data; that is snr + 1 / s^2.
    """

    kind: Literal["edm"] = "edm"
    sigma_data: float = Field(default=0.5, gt=0)

    def __call__(self, marginal: Marginal) -> Tensor:
        return marginal.snr + 1 / self.sigma_data**2


def untrained_end(weight: Weighting, schedule: Schedule) -> str | None:
    """A warning where the last time has weight 0 though the schedule leaves no signal there.

    min-SNR so cancels zero terminal SNR: the network is sampled from a time it never learns.
    """
    last = schedule.at(torch.ones(1, dtype=torch.float64, device="cpu"))
    if float(last.snr) > 0 or float(weight(last)) > 0:
        return None
    return (
        "task.weight: gives weight 0 to the last step of a schedule with zero terminal SNR, which "
        "is then not trained; set weight.kind v or snr_clamped, or loss.kind simple"
    )


WeightingConfig = Annotated[
    SnrClamped | Snr | MinSnr | VLoss | P2 | EDM, Field(discriminator="kind")
]
