"""How pictures are drawn with a denoiser, as one setting: solver, times, guidance, thresholding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor

from mezzotint.common.errors import UserError
from models.diffusion.guidance import (
    LogProbability,
    classifier_gradient,
    with_classifier_guidance,
    with_guidance,
    with_guidance_interval,
    with_guidance_rescale,
)
from models.diffusion.parameterization import Prediction
from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.config import (
    AnalyticDPMConfig,
    DDIMConfig,
    DDPMConfig,
    EulerAncestralConfig,
    EulerConfig,
    SolverConfig,
)
from models.diffusion.solvers.grids import (
    LeadingTimesConfig,
    LogSnrTimesConfig,
    TimeGridConfig,
    TrailingTimesConfig,
    UniformTimesConfig,
)
from models.diffusion.solvers.solver import IterativeSolver, ProgressCallback, SolverStep
from models.diffusion.thresholding import dynamic_threshold, static_threshold

C = TypeVar("C")


class NoThresholding(BaseModel, frozen=True, extra="forbid"):
    """x_0 as it is guessed: for latents and vectors."""

    kind: Literal["none"] = "none"

    def wrap(self, denoiser: Denoiser[C], schedule: Schedule) -> Denoiser[C]:
        """The denoiser itself."""
        return denoiser


class StaticThresholding(BaseModel, frozen=True, extra="forbid"):
    """x_0 clamped to [-1, 1]."""

    kind: Literal["static"] = "static"

    def wrap(self, denoiser: Denoiser[C], schedule: Schedule) -> Denoiser[C]:
        """The denoiser with its x_0 in range."""
        return static_threshold(denoiser, schedule)


class DynamicThresholding(BaseModel, frozen=True, extra="forbid"):
    """x_0 clamped to a percentile of its size and divided by it (arXiv 2205.11487, 2.3)."""

    kind: Literal["dynamic"] = "dynamic"
    percentile: float = Field(default=0.995, gt=0, le=1)

    def wrap(self, denoiser: Denoiser[C], schedule: Schedule) -> Denoiser[C]:
        """The denoiser with its x_0 in range."""
        return dynamic_threshold(denoiser, schedule, percentile=self.percentile)


ThresholdingConfig = Annotated[
    NoThresholding | StaticThresholding | DynamicThresholding, Field(discriminator="kind")
]


_PLAIN = (DDIMConfig, DDPMConfig, EulerConfig, EulerAncestralConfig, AnalyticDPMConfig)


@dataclass(frozen=True)
class SamplerPlan:
    """A solver and the times it visits (steps + 1,)."""

    solver: IterativeSolver
    times: Tensor


@dataclass(frozen=True)
class SamplerRun(Generic[C]):
    """A denoiser and the way from noise to its pictures: only noise and condition are missing."""

    plan: SamplerPlan
    denoiser: Denoiser[C]
    schedule: Schedule

    def start(self, noise: Tensor) -> Tensor:
        """x at the first time, from standard normal noise (B, ...)."""
        return scale_initial_noise(noise, self.schedule, float(self.plan.times[0]))

    def steps(self, x: Tensor, cond: C, rng: Generator) -> Iterator[SolverStep]:
        """The steps from the start x, made as they are asked for."""
        return self.plan.solver.steps(self.denoiser, x, self.plan.times, cond, rng)

    def solve(
        self, noise: Tensor, cond: C, rng: Generator, progress: ProgressCallback | None = None
    ) -> Tensor:
        """From standard normal noise (B, ...) to what is drawn."""
        x = self.start(noise)
        return self.plan.solver.solve(self.denoiser, x, self.plan.times, cond, rng, progress)


class DiffusionSampling(BaseModel, frozen=True, extra="forbid"):
    """Everything that decides what is drawn besides the network, the condition and the seed.

    `guidance` is the scale of classifier-free guidance: 1 is the plain conditional model, 0 the
    unconditional one. `interval` limits it to times in [low, high], `rescale` gives back the
    conditional deviation. `classifier_scale` acts where a noisy classifier is
    at hand: on the mean of DDPM's steps, on the guess of every other solver.
    """

    solver: SolverConfig = DDIMConfig()
    steps: int = Field(default=25, gt=0)
    times: TimeGridConfig | None = None
    """None: equal steps of t for solvers of order 1 in one call, which take them well; equal steps
    of the log signal-to-noise ratio for all others, which need short ones at the clean end."""
    guidance: float = Field(default=1.0, ge=0)
    interval: tuple[float, float] | None = None
    rescale: float = Field(default=0.0, ge=0, le=1)
    thresholding: ThresholdingConfig = StaticThresholding()
    classifier_scale: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.interval is not None and not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise ValueError("interval: two times, 0 <= low <= high <= 1, are needed")
        return self

    @property
    def time_grid(self) -> TimeGridConfig:
        """The grid of times, chosen by the solver where none is set."""
        if self.times is not None:
            return self.times
        return UniformTimesConfig() if isinstance(self.solver, _PLAIN) else LogSnrTimesConfig()

    def plan(
        self, schedule: Schedule, log_probability: LogProbability | None = None
    ) -> SamplerPlan:
        """Solver and times; where a classifier steers, `log_probability` of the wanted class.

        Raises:
            UserError: solver and times do not suit the schedule.
        """
        try:
            self._refuse_silence(schedule)
            times = self.time_grid.build(schedule, self.steps)
            solver = self._solver(schedule, log_probability)
        except ValueError as error:
            raise UserError(f"sampling: {error}") from error
        return SamplerPlan(solver, times)

    def sampler_run(
        self,
        conditional: Denoiser[C],
        unconditional: Denoiser[C],
        schedule: Schedule,
        log_probability: LogProbability | None = None,
    ) -> SamplerRun[C]:
        """How noise becomes pictures; see `plan` and `steered`.

        Raises:
            UserError: solver and times do not suit the schedule.
        """
        plan = self.plan(schedule, log_probability)
        asked = self.steered(conditional, unconditional, schedule, log_probability)
        return SamplerRun(plan, asked, schedule)

    def _refuse_silence(self, schedule: Schedule) -> None:
        """Only ddim and ddpm start where no signal is left."""
        grid = self.time_grid
        if isinstance(grid, TrailingTimesConfig | LeadingTimesConfig):
            first = float(grid.build(schedule, self.steps)[0])
        else:
            first = grid.first
        alpha = schedule.at(torch.tensor(first, dtype=torch.float64)).alpha
        if float(alpha) == 0 and not isinstance(self.solver, DDIMConfig | DDPMConfig):
            raise UserError(
                f"sampling.solver: {self.solver.kind} needs some signal at every time, which this "
                "model's schedule does not leave; choose ddim or ddpm"
            )

    def _solver(
        self, schedule: Schedule, log_probability: LogProbability | None
    ) -> IterativeSolver:
        match self.solver:
            case DDPMConfig() if log_probability is not None and self.classifier_scale:
                gradient = classifier_gradient(log_probability, self.classifier_scale)
                return self.solver.steered(schedule, gradient)
            case AnalyticDPMConfig(moments=moments) if moments and len(moments) != self.steps:
                raise ValueError(f"{self.steps} steps need as many moments, got {len(moments)}")
        return self.solver.build(schedule)

    def steered(
        self,
        conditional: Denoiser[C],
        unconditional: Denoiser[C],
        schedule: Schedule,
        log_probability: LogProbability | None = None,
    ) -> Denoiser[C]:
        """The denoiser that the solver asks: guidance first, thresholding last.

        `unconditional` is asked only where the scale is not 1.
        """
        conditional = memoize_last(conditional)
        if self.interval is None:
            steered = with_guidance(conditional, unconditional, self.guidance)
        else:
            low, high = self.interval
            steered = with_guidance_interval(
                conditional, unconditional, self.guidance, first=low, last=high
            )
        if self.guidance != 1:
            steered = with_guidance_rescale(steered, conditional, schedule, self.rescale)
        if log_probability is not None and not isinstance(self.solver, DDPMConfig):
            scale = self.classifier_scale
            steered = with_classifier_guidance(steered, schedule, log_probability, scale)
        return self.thresholding.wrap(steered, schedule)


@dataclass
class NFE:
    """How often networks were asked, a batch at a time."""

    network: int = 0
    classifier: int = 0


def count_nfe(denoiser: Denoiser[C], calls: NFE) -> Denoiser[C]:
    """The denoiser, its calls counted."""

    def denoise(x: Tensor, t: Tensor, cond: C) -> Prediction:
        calls.network += 1
        return denoiser(x, t, cond)

    return denoise


def count_classifier_nfe(log_probability: LogProbability, calls: NFE) -> LogProbability:
    """The classifier, its calls counted."""

    def ask(x: Tensor, t: Tensor) -> Tensor:
        calls.classifier += 1
        return log_probability(x, t)

    return ask


def memoize_last(denoiser: Denoiser[C]) -> Denoiser[C]:
    """The denoiser; the same question twice in a row is one call."""
    last: list[tuple[Tensor, Tensor, C, Prediction]] = []

    def denoise(x: Tensor, t: Tensor, cond: C) -> Prediction:
        if last and last[0][0] is x and last[0][1] is t and last[0][2] is cond:
            return last[0][3]
        guess = denoiser(x, t, cond)
        last[:] = [(x, t, cond, guess)]
        return guess

    return denoise


def scale_initial_noise(noise: Tensor, schedule: Schedule, time: float) -> Tensor:
    """x (B, ...) at a time, of data that standard normal noise (B, ...) hides.

    Its deviation is that of normalised data there, sqrt(alpha^2 + sigma^2): 1 where the schedule
    preserves variance.
    """
    here = schedule.at(torch.tensor(time, dtype=torch.float64))
    return noise * math.hypot(float(here.alpha), float(here.sigma))
