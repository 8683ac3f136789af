"""A diffusion process: the schedule, and what the network predicts under it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from models.diffusion.condition import Condition
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
from models.diffusion.schedules.marginal import Marginal
from models.diffusion.schedules.schedule import CosineScheduleConfig, ScheduleConfig
from models.diffusion.schedules.ve_schedule import EDMScheduleConfig, VEScheduleConfig
from models.nn.conditioning_cache import ActivationCache

C_contra = TypeVar("C_contra", contravariant=True)
_REMEMBERED = 4096
"""Times a process remembers at most."""


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
    prediction_type: Literal["x0", "noise", "v", "edm"] = "x0"
    """edm: a mixture of x0 and noise that has variance 1 at every time, as has what the network
    then sees (arXiv 2206.00364, 5). It is told t as ever."""
    sigma_data: float = Field(default=0.5, gt=0)
    """Standard deviation of the data, which edm asks for."""
    variance: Literal["fixed", "learned"] = "fixed"
    """Learned: the network gives as many channels again, -1 to 1, for `Prediction.spread`;
    `losses.hybrid_loss` trains them."""

    @model_validator(mode="after")
    def _possible(self) -> "ProcessConfig":
        exploding = isinstance(self.schedule, VEScheduleConfig | EDMScheduleConfig)
        if self.prediction_type == "v" and exploding:
            raise ValueError("prediction_type: v needs a schedule that preserves variance")
        return self

    @property
    def outputs(self) -> int:
        """Values a network gives per value of an image."""
        return 1 if self.variance == "fixed" else 2

    def build(self) -> "Process":
        """The process."""
        return Process(self)


def identity(x: Tensor, marginal: Marginal) -> Tensor:
    """x_t itself."""
    return x


@dataclass(frozen=True)
class Parameterization:
    """What a network sees and gives."""

    to_prediction: Callable[[Tensor, Tensor, Marginal], Prediction]
    """Raw output (B, ...), noisy (B, ...) and marginal to the prediction."""
    target: Callable[[Prediction, Marginal], Tensor]
    """The raw output that the truth would have."""
    precondition: Callable[[Tensor, Marginal], Tensor] = identity
    """The noisy image as the network sees it."""


def parameterization(config: ProcessConfig) -> Parameterization:
    """The one that a configuration names."""
    match config.prediction_type:
        case "x0":
            return Parameterization(from_x0, to_x0)
        case "noise":
            return Parameterization(from_noise, to_noise)
        case "v":
            return Parameterization(from_v, to_v)
        case "edm":
            s = config.sigma_data
            return Parameterization(
                partial(from_edm, deviation=s),
                partial(to_edm, deviation=s),
                partial(edm_input, deviation=s),
            )


@dataclass(frozen=True)
class AffineCoefficients:
    """What x_t and the raw output count for.

    One is a tensor without dimensions: torch multiplies by those in half the time.
    """

    of_x: Tensor
    of_raw: float

    def __call__(self, x: Tensor, raw: Tensor) -> Tensor:
        return (x * self.of_x).add_(raw, alpha=self.of_raw)


@dataclass(frozen=True)
class _Reading:
    """How to read at one time: every parameterization is linear in x_t and the raw output."""

    x0: AffineCoefficients | None
    """None: the raw output is x_0."""
    noise: AffineCoefficients | None
    fed: Tensor
    """What the network's input is of x_t."""

    @classmethod
    def at(cls, here: Marginal, how: Parameterization, dtype: torch.dtype) -> "_Reading":
        """At a marginal without dimensions, for values of a dtype."""
        one, none = torch.ones_like(here.alpha), torch.zeros_like(here.alpha)
        of_x, of_raw = how.to_prediction(none, one, here), how.to_prediction(one, none, here)
        x0, noise = (of_x.x0, of_raw.x0), (of_x.noise, of_raw.noise)
        return cls(_mix(*x0, dtype), _mix(*noise, dtype), how.precondition(one, here).to(dtype))

    def prediction(self, raw: Tensor, x: Tensor, spread: Tensor | None) -> Prediction:
        """From the raw output and x_t."""
        x0 = raw if self.x0 is None else partial(self.x0, x, raw)
        noise = raw if self.noise is None else partial(self.noise, x, raw)
        return Prediction(x0, noise, spread)


def _mix(of_x: Tensor, of_raw: Tensor, dtype: torch.dtype) -> AffineCoefficients | None:
    if float(of_x) == 0 and float(of_raw) == 1:
        return None
    return AffineCoefficients(of_x.to(dtype), float(of_raw))


class Process:
    """Noising, and reading a network's raw output."""

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self.schedule = config.schedule.build()
        self._parameterization = parameterization(config)
        self._outputs = config.outputs
        self._known: dict[tuple[float, torch.dtype], _Reading] = {}

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t for clean (B, ...), times (B,) and noise (B, ...)."""
        return self.schedule.at(t).add_noise(x0, noise)

    def input(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network sees of x_t (B, ...) at times (B,); x_t itself but for edm."""
        if self._parameterization.precondition is identity:
            return x
        known = self._shared(t)
        if known is not None:
            return x * known.fed
        return self._parameterization.precondition(x, self.schedule.at(t))

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should give for clean (B, ...), times (B,) and noise (B, ...)."""
        return self._parameterization.target(Prediction(x0, noise), self.schedule.at(t))

    def prediction(self, raw: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """The network's raw output (B, outputs x C, ...) at (x, t) as a prediction."""
        spread = None
        if self._outputs > 1:
            raw, spread = raw.chunk(2, dim=1)
            spread = (spread + 1) / 2
        known = self._shared(t)
        if known is not None:
            return known.prediction(raw, x, spread)
        guess = self._parameterization.to_prediction(raw, x, self.schedule.at(t))
        return Prediction(guess.x0, guess.noise, spread)

    def _shared(self, t: Tensor) -> _Reading | None:
        """How to read at times (B,) that are all the same, on a CPU.

        They are remembered, since solvers ask for the same few again and again.
        """
        if not t.is_cpu or t.requires_grad or torch.compiler.is_compiling():
            return None
        times = t.tolist()
        first = times[0]
        if times.count(first) < len(times):
            return None
        known = self._known.get((first, t.dtype))
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            with torch.inference_mode(mode=False), torch.no_grad():
                here = self.schedule.at(torch.tensor(first, dtype=torch.float64, device="cpu"))
                dtype = torch.promote_types(t.dtype, torch.float32)
                known = _Reading.at(here, self._parameterization, dtype)
            self._known[first, t.dtype] = known
        return known


def denoiser(network: DiffusionNetwork) -> Denoiser[Condition]:
    """The network as a denoiser, in fp32 whatever it computes in.

    It is for one drawing, in which weights stay as they are: without gradients, what the network
    makes of a condition alone is computed once.
    """
    cache = ActivationCache()

    def denoise(x: Tensor, t: Tensor, cond: Condition) -> Prediction:
        with cache.activate():
            raw = network(network.process.input(x, t), t, cond)
        return network.process.prediction(raw.to(torch.promote_types(x.dtype, torch.float32)), x, t)

    return denoise
