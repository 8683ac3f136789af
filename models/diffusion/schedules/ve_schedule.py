"""Variance exploding schedules: alpha is 1, so x_t = x_0 + sigma(t) noise."""

import math
from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from models.diffusion.schedules.marginal import Marginal, require_increasing


class VESchedule(BaseModel, frozen=True, extra="forbid"):
    """sigma = sigma_min (sigma_max / sigma_min)^t: the log signal-to-noise ratio is linear in t.

    The VE process of score-based SDEs, for images in [0, 1] (arXiv 2011.13456, appendix C).
    """

    kind: Literal["ve"] = "ve"
    sigma_min: float = Field(default=0.01, gt=0)
    sigma_max: float = Field(default=50.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return require_increasing(self, "sigma_min", "sigma_max")

    @property
    def _ends(self) -> tuple[float, float]:
        """ln sigma at t = 0, and its change up to t = 1."""
        first = math.log(self.sigma_min)
        return first, math.log(self.sigma_max) - first

    def at(self, t: Tensor) -> Marginal:
        first, span = self._ends
        return Marginal(torch.ones_like(t), (first + span * t).exp())

    def log_snr(self, t: Tensor) -> Tensor:
        first, span = self._ends
        return -2 * (first + span * t)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        first, span = self._ends
        return (-log_snr / 2 - first) / span


class EDMSchedule(BaseModel, frozen=True, extra="forbid"):
    """sigma^(1/rho) is linear in t: EDM (arXiv 2206.00364, table 1 and eq. 5)."""

    kind: Literal["edm"] = "edm"
    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    rho: float = Field(default=7.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return require_increasing(self, "sigma_min", "sigma_max")

    @property
    def _ends(self) -> tuple[float, float]:
        """sigma^(1/rho) at t = 0, and its change up to t = 1."""
        first = self.sigma_min ** (1 / self.rho)
        return first, self.sigma_max ** (1 / self.rho) - first

    def at(self, t: Tensor) -> Marginal:
        first, span = self._ends
        return Marginal(torch.ones_like(t), (first + span * t) ** self.rho)

    def log_snr(self, t: Tensor) -> Tensor:
        first, span = self._ends
        return -2 * self.rho * (first + span * t).log()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        first, span = self._ends
        return ((-log_snr / (2 * self.rho)).exp() - first) / span
