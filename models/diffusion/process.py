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
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.schedules.marginal import Marginal, Schedule
from models.diffusion.schedules.schedule import CosineSchedule, ScheduleConfig
from models.diffusion.schedules.ve_schedule import EDMSchedule, VESchedule
from models.nn.conditioning_cache import ActivationCache

C_contra = TypeVar("C_contra", contravariant=True)
_CACHED_TIMES = 4096
"""How many times a process keeps coefficients for."""


class Denoiser(Protocol[C_contra]):
    """Predicts the clean image behind a noisy one."""

    def __call__(self, x: Tensor, t: Tensor, condition: C_contra) -> Prediction:
        """Noisy (B, ...), times (B,) in [0, 1] and a condition to a prediction."""


@runtime_checkable
class DiffusionNetwork(Protocol):
    """A network that carries its process."""

    process: "Process"

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, ...), times (B,) and a condition to the raw output (B, outputs x C, ...)."""


class ProcessConfig(BaseModel, frozen=True, extra="forbid"):
    """Schedule and target of a diffusion network."""

    schedule: ScheduleConfig = CosineSchedule()
    prediction_type: Literal["x0", "noise", "v", "edm"] = "x0"
    """edm: a mixture of x0 and noise that has variance 1 at every time, and so has what the network
    then gets as input (arXiv 2206.00364, 5)."""
    sigma_data: float = Field(default=0.5, gt=0)
    """Standard deviation of the data, for edm."""
    variance: Literal["fixed", "learned"] = "fixed"
    """Learned: the network gives as many channels again, -1 to 1, for `Prediction.logvar_fraction`;
    `losses.hybrid_loss` trains them."""

    @model_validator(mode="after")
    def _possible(self) -> "ProcessConfig":
        exploding = isinstance(self.schedule, VESchedule | EDMSchedule)
        if self.prediction_type == "v" and exploding:
            raise ValueError("prediction_type: v needs a schedule that preserves variance")
        silent = isinstance(self.schedule, DiscreteSchedule) and self.schedule.zero_terminal_snr
        if self.prediction_type == "noise" and silent:
            raise ValueError(
                "prediction_type: noise says nothing of the image where the schedule leaves no "
                "signal (zero_terminal_snr; arXiv 2305.08891, 3.2); predict v or x0"
            )
        return self

    @property
    def outputs(self) -> int:
        """Values a network gives per value of an image."""
        return 1 if self.variance == "fixed" else 2

    def build(self) -> "Process":
        return Process(self)


def identity(x: Tensor, marginal: Marginal) -> Tensor:
    """x_t itself."""
    return x


@dataclass(frozen=True)
class Parameterization:
    """Input and output of a network."""

    to_prediction: Callable[[Tensor, Tensor, Marginal, Tensor | None], Prediction]
    """Raw output (B, ...), noisy (B, ...), marginal and logvar fraction to the prediction."""
    target: Callable[[Prediction, Marginal], Tensor]
    """The training target: the raw output of an exact network."""
    precondition: Callable[[Tensor, Marginal], Tensor] = identity
    """The network's input of the noisy image."""


def parameterization(config: ProcessConfig) -> Parameterization:
    """The one that `prediction_type` names."""
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
                partial(from_edm, sigma_data=s),
                partial(to_edm, sigma_data=s),
                partial(edm_input, sigma_data=s),
            )


class _Coefficients:
    """A parameterization at one time: it is linear in x_t and the raw output."""

    def __init__(self, here: Marginal, how: Parameterization, dtype: torch.dtype) -> None:
        """At a marginal without dimensions, for values of a dtype."""
        one, zero = torch.ones_like(here.alpha), torch.zeros_like(here.alpha)
        of_x, of_raw = (how.to_prediction(*pair, here, None) for pair in ((zero, one), (one, zero)))
        self.x0 = _linear(of_x.x0, of_raw.x0, dtype)
        self.noise = _linear(of_x.noise, of_raw.noise, dtype)
        self.input = how.precondition(one, here).to(dtype)


def _linear(
    of_x: Tensor, of_raw: Tensor, dtype: torch.dtype
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """(raw, x) to of_x x + of_raw raw; None where that is raw itself.

    One factor is a 0-dimensional tensor: torch multiplies by those in half the time.
    """
    x_factor, raw_factor = of_x.to(dtype), float(of_raw)
    if float(of_x) == 0 and raw_factor == 1:
        return None
    return lambda raw, x: (x * x_factor).add_(raw, alpha=raw_factor)


class Process:
    """Adding noise, and turning a network's raw output into a prediction."""

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        self.schedule: Schedule = config.schedule
        self._parameterization = parameterization(config)
        self._outputs = config.outputs
        self._cache: dict[tuple[float, torch.dtype], _Coefficients] = {}

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t for clean (B, ...), times (B,) and noise (B, ...)."""
        return self.schedule.at(t).add_noise(x0, noise)

    def input(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's input for x_t (B, ...) at times (B,); x_t itself but for edm."""
        if self._parameterization.precondition is identity:
            return x
        cached = self._coefficients(t)
        if cached is not None:
            return x * cached.input
        return self._parameterization.precondition(x, self.schedule.at(t))

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The raw output wanted for clean (B, ...), times (B,) and noise (B, ...)."""
        return self._parameterization.target(Prediction(x0, noise), self.schedule.at(t))

    def prediction(self, raw: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """The network's raw output (B, outputs x C, ...) at (x, t) as a prediction."""
        fraction = None
        if self._outputs > 1:
            raw, fraction = raw.chunk(2, dim=1)
            fraction = (fraction + 1) / 2
        cached = self._coefficients(t)
        if cached is not None:
            x0 = raw if cached.x0 is None else partial(cached.x0, raw, x)
            noise = raw if cached.noise is None else partial(cached.noise, raw, x)
            return Prediction(x0, noise, fraction)
        return self._parameterization.to_prediction(raw, x, self.schedule.at(t), fraction)

    def _coefficients(self, t: Tensor) -> _Coefficients | None:
        """Those of times (B,) that are all the same, on a CPU: solvers use the same few again."""
        if not t.is_cpu or t.requires_grad or torch.compiler.is_compiling():
            return None
        times = t.tolist()
        first = times[0]
        if times.count(first) < len(times):
            return None
        found = self._cache.get((first, t.dtype))
        if found is None:
            if len(self._cache) >= _CACHED_TIMES:
                self._cache.clear()
            with torch.inference_mode(mode=False), torch.no_grad():
                here = self.schedule.at(torch.tensor(first, dtype=torch.float64, device="cpu"))
                dtype = torch.promote_types(t.dtype, torch.float32)
                found = _Coefficients(here, self._parameterization, dtype)
            self._cache[first, t.dtype] = found
        return found


def denoiser(network: DiffusionNetwork) -> Denoiser[Condition]:
    """The network as a denoiser; its outputs are cast to fp32.

    It is for one sampling run, in which weights stay as they are: without gradients, what the
    network computes of a condition alone is computed once.
    """
    cache = ActivationCache()

    def denoise(x: Tensor, t: Tensor, condition: Condition) -> Prediction:
        with cache.activate():
            raw = network(network.process.input(x, t), t, condition)
        return network.process.prediction(raw.to(torch.promote_types(x.dtype, torch.float32)), x, t)

    return denoise
