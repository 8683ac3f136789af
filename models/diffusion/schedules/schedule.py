"""Noise schedules: x_t = alpha(t) x_0 + sigma(t) noise, t from 0 (clean) to 1 (noise).

The ones of this file are variance preserving, alpha^2 + sigma^2 = 1, and in continuous time.
"""

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from models.diffusion.schedules.discrete import DiscreteScheduleConfig
from models.diffusion.schedules.marginal import Marginal, require_increasing
from models.diffusion.schedules.ve_schedule import EDMScheduleConfig, VEScheduleConfig


class CosineScheduleConfig(BaseModel, frozen=True, extra="forbid"):
    """Cosine schedule with both ends at a finite log signal-to-noise ratio."""

    kind: Literal["cosine"] = "cosine"
    log_snr_min: float = -15.0
    log_snr_max: float = 15.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return require_increasing(self, "log_snr_min", "log_snr_max")

    def build(self) -> "CosineSchedule":
        return CosineSchedule(self)


class CosineSchedule:
    """alpha = cos(a), sigma = sin(a), the angle a linear in t (arXiv 2202.00512, appendix D).

    The angle runs between those of the two end ratios, tan(a) = exp(-log_snr / 2).
    """

    def __init__(self, config: CosineScheduleConfig) -> None:
        self._first = math.atan(math.exp(-config.log_snr_max / 2))
        self._span = math.atan(math.exp(-config.log_snr_min / 2)) - self._first

    def at(self, t: Tensor) -> Marginal:
        angle = self._first + self._span * t
        return Marginal(angle.cos(), angle.sin())

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (self._first + self._span * t).tan().log()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr / 2).exp().atan() - self._first) / self._span


class _LinearBetasConfig(BaseModel, frozen=True, extra="forbid"):
    beta_min: float = Field(default=0.1, gt=0)
    beta_max: float = Field(default=20.0, gt=0)
    first: float = Field(gt=0, lt=1)
    """The continuous time of t = 0."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return require_increasing(self, "beta_min", "beta_max")

    def build(self) -> "LinearSchedule":
        return LinearSchedule(self)


class LinearScheduleConfig(_LinearBetasConfig, frozen=True, extra="forbid"):
    """DDPM's linear betas, 1e-4..0.02 in a thousand steps, in continuous time.

    It begins at the first of the thousand steps, so that sigma is never 0.
    """

    kind: Literal["linear"] = "linear"
    first: float = Field(default=1e-3, gt=0, lt=1)


class VPScheduleConfig(_LinearBetasConfig, frozen=True, extra="forbid"):
    """The VP process of arXiv 2011.13456, appendix C: `linear`, but sampled down to 1e-5."""

    kind: Literal["vp"] = "vp"
    first: float = Field(default=1e-5, gt=0, lt=1)


class LinearSchedule:
    """alpha^2 = exp(-B(s)), B(s) = beta_min s + (beta_max - beta_min) s^2 / 2.

    The variance-preserving process of arXiv 2011.13456, appendix C.
    """

    def __init__(self, config: _LinearBetasConfig) -> None:
        self._config = config

    def _integral(self, t: Tensor) -> Tensor:
        config = self._config
        s = config.first + (1 - config.first) * t
        return config.beta_min * s + 0.5 * (config.beta_max - config.beta_min) * s**2

    def at(self, t: Tensor) -> Marginal:
        integral = self._integral(t)
        return Marginal((-0.5 * integral).exp(), (-torch.expm1(-integral)).sqrt())

    def log_snr(self, t: Tensor) -> Tensor:
        """ln(alpha^2 / sigma^2) = -ln(exp(B) - 1)."""
        return -torch.expm1(self._integral(t)).log()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        config = self._config
        integral = torch.nn.functional.softplus(-log_snr)
        slope = config.beta_max - config.beta_min
        # the root of slope s^2 / 2 + beta_min s - B, in the form that loses no digits near s = 0
        s = 2 * integral / (config.beta_min + (config.beta_min**2 + 2 * slope * integral).sqrt())
        return (s - config.first) / (1 - config.first)


ScheduleConfig = Annotated[
    CosineScheduleConfig
    | LinearScheduleConfig
    | VPScheduleConfig
    | VEScheduleConfig
    | EDMScheduleConfig
    | DiscreteScheduleConfig,
    Field(discriminator="kind"),
]
