"""Variance exploding schedules: alpha is 1, so x_t = x_0 + sigma(t) noise."""

import math
from typing import Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from models.diffusion.schedules.marginal import Marginal, require_increasing


class VEScheduleConfig(BaseModel, frozen=True, extra="forbid"):
    """The VE process of score-based SDEs, for images in [0, 1] (arXiv 2011.13456, appendix C)."""

    kind: Literal["ve"] = "ve"
    sigma_min: float = Field(default=0.01, gt=0)
    sigma_max: float = Field(default=50.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return require_increasing(self, "sigma_min", "sigma_max")

    def build(self) -> "VESchedule":
        return VESchedule(self)


class VESchedule:
    """sigma = sigma_min (sigma_max / sigma_min)^t: the log signal-to-noise ratio is linear in t."""

    def __init__(self, config: VEScheduleConfig) -> None:
        self._first = math.log(config.sigma_min)
        self._span = math.log(config.sigma_max) - self._first

    def at(self, t: Tensor) -> Marginal:
        return Marginal(torch.ones_like(t), (self._first + self._span * t).exp())

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (self._first + self._span * t)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return (-log_snr / 2 - self._first) / self._span


class EDMScheduleConfig(BaseModel, frozen=True, extra="forbid"):
    """The process of EDM (arXiv 2206.00364, table 1); equal steps of t are its equation 5."""

    kind: Literal["edm"] = "edm"
    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    rho: float = Field(default=7.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        return require_increasing(self, "sigma_min", "sigma_max")

    def build(self) -> "EDMSchedule":
        return EDMSchedule(self)


class EDMSchedule:
    """sigma^(1/rho) is linear in t."""

    def __init__(self, config: EDMScheduleConfig) -> None:
        self._rho = config.rho
        self._first = config.sigma_min ** (1 / config.rho)
        self._span = config.sigma_max ** (1 / config.rho) - self._first

    def at(self, t: Tensor) -> Marginal:
        return Marginal(torch.ones_like(t), (self._first + self._span * t) ** self._rho)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self._rho * (self._first + self._span * t).log()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        return ((-log_snr / (2 * self._rho)).exp() - self._first) / self._span
