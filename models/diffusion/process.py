"""A diffusion process: the schedule, and what the network predicts under it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from models.diffusion.condition import Condition
from models.diffusion.exploding import EDMScheduleConfig, VEScheduleConfig
from models.diffusion.marginal import Marginal
from models.diffusion.parameterization import (
    Prediction,
    edm_input,
    from_edm,
    from_noise,
    from_v,
    from_x0,
    to_edm,
    to_noise,
    to_v,
    to_x0,
)
from models.diffusion.schedule import CosineScheduleConfig, ScheduleConfig

C_contra = TypeVar("C_contra", contravariant=True)
_REMEMBERED = 4096
"""Marginals a process remembers at most."""


class Denoiser(Protocol[C_contra]):
    """Guesses the clean image behind a noisy one."""

    def __call__(self, x: Tensor, t: Tensor, cond: C_contra) -> Prediction:
        """Noisy (B, ...), times (B,) in [0, 1] and a condition to a prediction."""
        ...


@runtime_checkable
class DiffusionNetwork(Protocol):
    """A network that carries its process."""

    process: "Process"

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Noisy (B, ...), times (B,) and a condition to the raw output (B, outputs x C, ...)."""
        ...


class ProcessConfig(BaseModel, frozen=True, extra="forbid"):
    """Schedule and target of a diffusion network."""

    schedule: ScheduleConfig = CosineScheduleConfig()
    predicts: Literal["x0", "noise", "v", "edm"] = "x0"
    """edm: a mixture of x0 and noise that has variance 1 at every time, as has what the network
    then sees (arXiv 2206.00364, 5). It is told t as ever."""
    data_deviation: float = Field(default=0.5, gt=0)
    """Standard deviation of the data, which edm asks for."""
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


def as_it_is(x: Tensor, marginal: Marginal) -> Tensor:
    """x_t itself."""
    return x


@dataclass(frozen=True)
class Parameterization:
    """What a network sees and gives."""

    read: Callable[[Tensor, Tensor, Marginal], Prediction]
    """Raw output (B, ...), noisy (B, ...) and marginal to the prediction."""
    aim: Callable[[Prediction, Marginal], Tensor]
    """The raw output that the truth would have."""
    feed: Callable[[Tensor, Marginal], Tensor] = as_it_is
    """The noisy image as the network sees it."""


def parameterization(config: ProcessConfig) -> Parameterization:
    """The one that a configuration names."""
    match config.predicts:
        case "x0":
            return Parameterization(from_x0, to_x0)
        case "noise":
            return Parameterization(from_noise, to_noise)
        case "v":
            return Parameterization(from_v, to_v)
        case "edm":
            s = config.data_deviation
            return Parameterization(
                partial(from_edm, deviation=s),
                partial(to_edm, deviation=s),
                partial(edm_input, deviation=s),
            )


class Process:
    """Noising, and reading a network's raw output."""

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self.schedule = config.schedule.build()
        self._parameterization = parameterization(config)
        self._known: dict[tuple[float, torch.dtype], Marginal] = {}

    def noisy(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t for clean (B, ...), times (B,) and noise (B, ...)."""
        return self.schedule.at(t).noisy(x0, noise)

    def input(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network sees of x_t (B, ...) at times (B,); x_t itself but for edm."""
        if self._parameterization.feed is as_it_is:
            return x
        return self._parameterization.feed(x, self._at(t))

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should give for clean (B, ...), times (B,) and noise (B, ...)."""
        return self._parameterization.aim(Prediction(x0, noise), self.schedule.at(t))

    def prediction(self, raw: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """The network's raw output (B, outputs x C, ...) at (x, t) as a prediction."""
        read, here = self._parameterization.read, self._at(t)
        if self.config.outputs == 1:
            return read(raw, x, here)
        mean, spread = raw.chunk(2, dim=1)
        return replace(read(mean, x, here), spread=(spread + 1) / 2)

    def _at(self, t: Tensor) -> Marginal:
        """The marginal at times (B,): (B,), or (1,) where a CPU's batch shares its time.

        Those are remembered, since solvers ask for the same few again and again.
        """
        if t.device.type != "cpu" or t.requires_grad or torch.compiler.is_compiling():
            return self.schedule.at(t)
        first, *others = t.tolist()
        if any(other != first for other in others):
            return self.schedule.at(t)
        here = self._known.get((first, t.dtype))
        if here is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            with torch.inference_mode(mode=False):
                here = self.schedule.at(torch.tensor([first], dtype=t.dtype))
            self._known[first, t.dtype] = here
        return here


def denoiser(network: DiffusionNetwork) -> Denoiser[Condition]:
    """The network as a denoiser, in fp32 whatever it computes in."""

    def denoise(x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        raw = network(network.process.input(x, t), t, cond)
        return network.process.prediction(raw.to(torch.promote_types(x.dtype, torch.float32)), x, t)

    return denoise
