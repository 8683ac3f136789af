"""A diffusion process: the schedule, and what the network predicts under it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

import torch
from pydantic import BaseModel, model_validator
from torch import Tensor

from models.diffusion.condition import Condition
from models.diffusion.exploding import EDMScheduleConfig, VEScheduleConfig
from models.diffusion.marginal import Marginal
from models.diffusion.parameterization import (
    Prediction,
    from_noise,
    from_v,
    from_x0,
    to_noise,
    to_v,
    to_x0,
)
from models.diffusion.schedule import CosineScheduleConfig, ScheduleConfig

C_contra = TypeVar("C_contra", contravariant=True)


class Denoiser(Protocol[C_contra]):
    """Guesses the clean image behind a noisy one."""

    def __call__(self, x: Tensor, t: Tensor, cond: C_contra) -> Prediction:
        """Noisy (B, ...), times (B,) in [0, 1] and a condition to a prediction."""
        ...


class DiffusionNetwork(Protocol):
    """A network that carries its process."""

    process: "Process"

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Noisy (B, ...), times (B,) and a condition to the raw output (B, outputs x C, ...)."""
        ...


class ProcessConfig(BaseModel, frozen=True, extra="forbid"):
    """Schedule and target of a diffusion network."""

    schedule: ScheduleConfig = CosineScheduleConfig()
    predicts: Literal["x0", "noise", "v"] = "x0"
    variance: Literal["fixed", "learned"] = "fixed"
    """Learned: the network gives as many channels again, -1 to 1, for `Prediction.spread`;
    `losses.hybrid_loss` trains them."""

    @model_validator(mode="after")
    def _possible(self) -> "ProcessConfig":
        exploding = isinstance(self.schedule, VEScheduleConfig | EDMScheduleConfig)
        if self.predicts == "v" and exploding:
            raise ValueError("predicts: v needs a schedule that preserves variance")
        return self

    @property
    def outputs(self) -> int:
        """Values a network gives per value of an image."""
        return 1 if self.variance == "fixed" else 2

    def build(self) -> "Process":
        """The process."""
        return Process(self)


Parameterization = Callable[[Tensor, Tensor, Marginal], Prediction]
_PARAMETERIZATIONS: Mapping[str, Parameterization] = {
    "x0": from_x0,
    "noise": from_noise,
    "v": from_v,
}
_TARGETS: Mapping[str, Callable[[Prediction, Marginal], Tensor]] = {
    "x0": to_x0,
    "noise": to_noise,
    "v": to_v,
}


class Process:
    """Noising, and reading a network's raw output."""

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self.schedule = config.schedule.build()
        self._parameterization = _PARAMETERIZATIONS[config.predicts]
        self._target = _TARGETS[config.predicts]

    def noisy(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t for clean (B, ...), times (B,) and noise (B, ...)."""
        return self.schedule.at(t).noisy(x0, noise)

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should give for clean (B, ...), times (B,) and noise (B, ...)."""
        return self._target(Prediction(x0, noise), self.schedule.at(t))

    def prediction(self, raw: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """The network's raw output (B, outputs x C, ...) at (x, t) as a prediction."""
        mean, *rest = raw.chunk(self.config.outputs, dim=1)
        guess = self._parameterization(mean, x, self.schedule.at(t))
        return replace(guess, spread=(rest[0] + 1) / 2) if rest else guess


def denoiser(network: DiffusionNetwork) -> Denoiser[Condition]:
    """The network as a denoiser, in fp32 whatever it computes in."""

    def denoise(x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        raw = network(x, t, cond)
        return network.process.prediction(raw.to(torch.promote_types(x.dtype, torch.float32)), x, t)

    return denoise
