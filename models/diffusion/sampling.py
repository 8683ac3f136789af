"""Sampling as one setting: solver, times, guidance, thresholding."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

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
    with_mean_gradient,
)
from models.diffusion.parameterization import Prediction
from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule
from models.diffusion.solvers.analytic_dpm import AnalyticDPM
from models.diffusion.solvers.config import SolverConfig
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.ddpm import DDPM
from models.diffusion.solvers.euler import Euler
from models.diffusion.solvers.euler_ancestral import EulerAncestral
from models.diffusion.solvers.grids import (
    LdmTimesConfig,
    LeadingTimesConfig,
    LogSnrTimesConfig,
    TimeGridConfig,
    TrailingTimesConfig,
    UniformTimesConfig,
)
from models.diffusion.solvers.solver import ProgressCallback, Solver, SolverStep
from models.diffusion.thresholding import (
    NoThresholding,
    StaticThresholding,
    ThresholdingConfig,
)

C = TypeVar("C")


@dataclass(frozen=True)
class SamplerRun(Generic[C]):
    """A configured sampler: solver, times and guided denoiser."""

    solver: Solver
    times: Tensor
    """(steps + 1,)."""
    denoiser: Denoiser[C]
    schedule: Schedule

    def start(self, noise: Tensor) -> Tensor:
        """x at the first time, from standard normal noise (B, ...)."""
        return scale_initial_noise(noise, self.schedule, float(self.times[0]))

    def steps(self, x: Tensor, condition: C, rng: Generator) -> Iterator[SolverStep]:
        """The steps from x (B, ...) at the first time, each computed when it is requested."""
        return self.solver.steps(self.schedule, self.denoiser, x, self.times, condition, rng)

    def solve(
        self, noise: Tensor, condition: C, rng: Generator, progress: ProgressCallback | None = None
    ) -> Tensor:
        """From standard normal noise (B, ...) to samples (B, ...)."""
        x = self.start(noise)
        return self.solver.solve(
            self.schedule, self.denoiser, x, self.times, condition, rng, progress
        )


class DiffusionSampling(BaseModel, frozen=True, extra="forbid"):
    """Everything that determines a sample besides the network, the condition and the seed.

    `guidance` is the scale of classifier-free guidance: 1 is the plain conditional model, 0 the
    unconditional one. `interval` limits it to times in [low, high], `rescale` restores the standard
    deviation of the conditional prediction. `classifier_scale` acts where a noisy classifier is
    given: on the mean of DDPM's steps, on the prediction of every other solver.
    """

    solver: SolverConfig = DDIM()
    steps: int = Field(default=25, gt=0)
    times: TimeGridConfig | None = None
    """None: equal steps of t for first-order solvers with one network call a step; equal steps
    of the log signal-to-noise ratio for all others, which need short ones near t = 0."""
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
        first_order = (DDIM, DDPM, Euler, EulerAncestral, AnalyticDPM)
        return UniformTimesConfig() if isinstance(self.solver, first_order) else LogSnrTimesConfig()

    def sampler_run(
        self,
        conditional: Denoiser[C],
        unconditional: Denoiser[C],
        schedule: Schedule,
        log_probability: LogProbability | None = None,
    ) -> SamplerRun[C]:
        """The solver on its times; `log_probability` of the wanted class for classifier guidance.

        Raises:
            UserError: solver and times do not suit the schedule.
        """
        try:
            self._require_signal(schedule)
            times = self.time_grid.build(schedule, self.steps)
            self.solver.check(self.steps)
        except ValueError as error:
            raise UserError(f"sampling: {error}") from error
        denoiser = self.guided_denoiser(conditional, unconditional, schedule, log_probability)
        return SamplerRun(self.solver, times, denoiser, schedule)

    def _require_signal(self, schedule: Schedule) -> None:
        """With zero terminal SNR sampling starts at the last step, and only by ddim and ddpm."""
        grid = self.time_grid
        if isinstance(grid, TrailingTimesConfig | LeadingTimesConfig | LdmTimesConfig):
            first = grid.build(schedule, self.steps)[0]
        else:
            first = torch.tensor(grid.first, dtype=torch.float64, device="cpu")
        end = torch.ones_like(first)
        early = isinstance(grid, LeadingTimesConfig | LdmTimesConfig) and float(first) < 1
        if early and float(schedule.at(end).alpha) == 0:
            raise UserError(
                f"sampling.times: kind {grid.kind} starts at time {float(first):.4g}, but this "
                "model's schedule has zero terminal SNR and was trained from pure noise at time 1 "
                "(arXiv 2305.08891, 3.3); choose trailing or uniform"
            )
        if float(schedule.at(first).alpha) == 0 and not isinstance(self.solver, DDIM | DDPM):
            raise UserError(
                f"sampling.solver: {self.solver.kind} needs some signal at every time, which this "
                "model's schedule does not leave; choose ddim or ddpm"
            )

    def guided_denoiser(
        self,
        conditional: Denoiser[C],
        unconditional: Denoiser[C],
        schedule: Schedule,
        log_probability: LogProbability | None = None,
    ) -> Denoiser[C]:
        """The denoiser that the solver calls: guidance first, then thresholding.

        `unconditional` is called only where the scale is not 1.
        """
        conditional = memoize_last(conditional)
        if self.interval is None:
            guided = with_guidance(conditional, unconditional, self.guidance)
        else:
            low, high = self.interval
            guided = with_guidance_interval(
                conditional, unconditional, self.guidance, first=low, last=high
            )
        if self.guidance != 1:
            guided = with_guidance_rescale(guided, conditional, schedule, self.rescale)
        scale = self.classifier_scale
        if log_probability is None or not scale:
            return self.thresholding.wrap(guided, schedule)
        if isinstance(self.solver, DDPM):
            gradient = classifier_gradient(log_probability, scale)
            return with_mean_gradient(self.thresholding.wrap(guided, schedule), gradient)
        guided = with_classifier_guidance(guided, schedule, log_probability, scale)
        return self.thresholding.wrap(guided, schedule)


class LatentSampling(DiffusionSampling, frozen=True, extra="forbid"):
    """The same for latents, which have no range: their x_0 is not clamped."""

    thresholding: ThresholdingConfig = NoThresholding()

    @model_validator(mode="after")
    def _unlimited(self) -> Self:
        if not isinstance(self.thresholding, NoThresholding):
            raise ValueError(
                "thresholding: acts on pixels in [-1, 1], and latents have no such range; leave it "
                "out"
            )
        return self


@dataclass
class NFE:
    """Number of function evaluations: calls of networks, each for a whole batch."""

    network: int = 0
    classifier: int = 0


def count_nfe(denoiser: Denoiser[C], calls: NFE) -> Denoiser[C]:
    """The denoiser, its calls counted."""

    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        calls.network += 1
        return denoiser(x, t, condition)

    return denoise


def count_classifier_nfe(log_probability: LogProbability, calls: NFE) -> LogProbability:
    """The classifier, its calls counted."""

    def classify(x: Tensor, t: Tensor) -> Tensor:
        calls.classifier += 1
        return log_probability(x, t)

    return classify


def memoize_last(denoiser: Denoiser[C]) -> Denoiser[C]:
    """The denoiser; the same arguments twice in a row are one call."""
    last: list[tuple[Tensor, Tensor, C, Prediction]] = []

    def denoise(x: Tensor, t: Tensor, condition: C) -> Prediction:
        if last and last[0][0] is x and last[0][1] is t and last[0][2] is condition:
            return last[0][3]
        pred = denoiser(x, t, condition)
        last[:] = [(x, t, condition, pred)]
        return pred

    return denoise


def scale_initial_noise(noise: Tensor, schedule: Schedule, time: float) -> Tensor:
    """x (B, ...) at a time where standard normal noise (B, ...) hides the data.

    Its standard deviation is that of normalised data there, sqrt(alpha^2 + sigma^2): 1 where the
    schedule preserves variance.
    """
    here = schedule.at(torch.tensor(time, dtype=torch.float64, device="cpu"))
    return noise * math.hypot(float(here.alpha), float(here.sigma))
