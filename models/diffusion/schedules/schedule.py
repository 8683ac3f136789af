"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) noise, t from 0 (clean) to 1 (noise).

The ones of this file are variance preserving, alpha^2 + sigma^2 = 1, and in continuous time.
"""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.schedules.marginal import Marginal, require_increasing
from models.diffusion.schedules.ve_schedule import EDMSchedule, VESchedule


class CosineSchedule(BaseModel, frozen=True, extra="forbid"):
    """alpha = cos(a), sigma = sin(a), the angle a linear in t (arXiv 2202.00512, appendix D).

    The angle runs between those of the two end ratios, tan(a) = exp(-log_snr / 2), both finite.
    """

    kind: Literal["cosine"] = "cosine"
    log_snr_min: float = -15.0
    log_snr_max: float = 15.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return require_increasing(self, "log_snr_min", "log_snr_max")

    @property
    def _ends(self) -> tuple[float, float]:
        """The angle at t = 0, and its change up to t = 1."""
        first = math.atan(math.exp(-self.log_snr_max / 2))
        return first, math.atan(math.exp(-self.log_snr_min / 2)) - first

    def at(self, t: Tensor) -> Marginal:
        first, span = self._ends
        angle = first + span * t
        return Marginal(angle.cos(), angle.sin())

    def log_snr(self, t: Tensor) -> Tensor:
        first, span = self._ends
        return -2 * (first + span * t).tan().log()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        first, span = self._ends
        return ((-log_snr / 2).exp().atan() - first) / span


class _LinearBetas(BaseModel, frozen=True, extra="forbid"):
    """alpha^2 = exp(-B(s)), B(s) = beta_min s + (beta_max - beta_min) s^2 / 2.

    The variance-preserving process of arXiv 2011.13456, appendix C.
    """

    beta_min: float = Field(default=0.1, gt=0)
    beta_max: float = Field(default=20.0, gt=0)
    first: float = Field(gt=0, lt=1)
    """The continuous time of t = 0."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return require_increasing(self, "beta_min", "beta_max")

    def _integral(self, t: Tensor) -> Tensor:
        s = self.first + (1 - self.first) * t
        return self.beta_min * s + 0.5 * (self.beta_max - self.beta_min) * s**2

    def at(self, t: Tensor) -> Marginal:
        integral = self._integral(t)
        return Marginal((-0.5 * integral).exp(), (-torch.expm1(-integral)).sqrt())

    def log_snr(self, t: Tensor) -> Tensor:
        """ln(alpha^2 / sigma^2) = -ln(exp(B) - 1)."""
        return -torch.expm1(self._integral(t)).log()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        integral = torch.nn.functional.softplus(-log_snr)
        slope = self.beta_max - self.beta_min
        # the root of slope s^2 / 2 + beta_min s - B, in the form that loses no digits near s = 0
        s = 2 * integral / (self.beta_min + (self.beta_min**2 + 2 * slope * integral).sqrt())
        return (s - self.first) / (1 - self.first)


class LinearSchedule(_LinearBetas, frozen=True, extra="forbid"):
    """DDPM's linear betas, 1e-4..0.02 in a thousand steps, in continuous time.

    It begins at the first of the thousand steps, so that sigma is never 0.
    """

    kind: Literal["linear"] = "linear"
    first: float = Field(default=1e-3, gt=0, lt=1)


class VPSchedule(_LinearBetas, frozen=True, extra="forbid"):
    """The VP process of arXiv 2011.13456, appendix C: `linear`, but sampled down to 1e-5."""

    kind: Literal["vp"] = "vp"
    first: float = Field(default=1e-5, gt=0, lt=1)


ScheduleConfig = Annotated[
    CosineSchedule | LinearSchedule | VPSchedule | VESchedule | EDMSchedule | DiscreteSchedule,
    Field(discriminator="kind"),
]
