"""Grids of times: `build(schedule, steps)` gives decreasing times (steps + 1,), in fp64.

It raises a `ValueError` where the grid does not suit the schedule or the number of steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.schedules.marginal import Schedule
from models.diffusion.solvers.times import (
    karras_times,
    ldm_times,
    leading_times,
    quadratic_times,
    trailing_times,
    uniform_log_snr_times,
    uniform_times,
)


class _Span(BaseModel, frozen=True, extra="forbid"):
    first: float = Field(default=1.0, gt=0, le=1)
    """The noisy end."""
    last: float = Field(default=0.0, ge=0, lt=1)
    """t = 0."""

    @model_validator(mode="after")
    def _decreasing(self) -> Self:
        if self.last >= self.first:
            raise ValueError("last must lie below first")
        return self


class UniformTimesConfig(_Span, frozen=True, extra="forbid"):
    """Equal steps of t."""

    kind: Literal["uniform"] = "uniform"

    def build(self, schedule: Schedule, steps: int) -> Tensor:
        return uniform_times(steps, first=self.first, last=self.last)


class QuadraticTimesConfig(_Span, frozen=True, extra="forbid"):
    """Equal steps of sqrt(t)."""

    kind: Literal["quadratic"] = "quadratic"

    def build(self, schedule: Schedule, steps: int) -> Tensor:
        return quadratic_times(steps, first=self.first, last=self.last)


class KarrasTimesConfig(_Span, frozen=True, extra="forbid"):
    """Equal steps of (sigma / alpha)^(1 / rho) (EDM); on discrete steps, like `log_snr`."""

    kind: Literal["karras"] = "karras"
    rho: float = Field(default=7.0, gt=0)

    def build(self, schedule: Schedule, steps: int) -> Tensor:
        grid = partial(karras_times, schedule, rho=self.rho, first=self.first)
        return _to_clean(schedule, steps, self, grid)


class LogSnrTimesConfig(_Span, frozen=True, extra="forbid"):
    """Equal steps of the log signal-to-noise ratio.

    Where no noise is left at the clean end, the ratio is infinite there: the equal steps then end
    at the first discrete step, and one more leads to the clean end.
    """

    kind: Literal["log_snr"] = "log_snr"

    def build(self, schedule: Schedule, steps: int) -> Tensor:
        grid = partial(uniform_log_snr_times, schedule, first=self.first)
        return _to_clean(schedule, steps, self, grid)


class TrailingTimesConfig(BaseModel, frozen=True, extra="forbid"):
    """Every (N / steps)-th of the schedule's N discrete steps, from the last one."""

    kind: Literal["trailing"] = "trailing"

    def build(self, schedule: Schedule, steps: int) -> Tensor:
        return trailing_times(_discrete(schedule, steps, self.kind), steps)


class LeadingTimesConfig(BaseModel, frozen=True, extra="forbid"):
    """Steps 1, 1 + r, 1 + 2 r ... of the schedule's N discrete steps, r = N // steps."""

    kind: Literal["leading"] = "leading"
    offset: int = Field(default=0, ge=0)

    def build(self, schedule: Schedule, steps: int) -> Tensor:
        return leading_times(_discrete(schedule, steps, self.kind), steps, offset=self.offset)


class LdmTimesConfig(BaseModel, frozen=True, extra="forbid"):
    """DDIM's steps in the released code of latent diffusion (arXiv 2112.10752).

    Steps 2, 2 + r, 2 + 2 r ... of the schedule's N discrete steps, r = N / steps, down to the first
    step, whose little noise stays.
    """

    kind: Literal["ldm"] = "ldm"

    def build(self, schedule: Schedule, steps: int) -> Tensor:
        count = _discrete(schedule, steps, self.kind)
        if count % steps or count == steps:
            raise ValueError(
                f"times of kind ldm take a number of steps below {count} that divides it, not "
                f"{steps}"
            )
        return ldm_times(count, steps)


TimeGridConfig = Annotated[
    UniformTimesConfig
    | QuadraticTimesConfig
    | KarrasTimesConfig
    | LogSnrTimesConfig
    | TrailingTimesConfig
    | LeadingTimesConfig
    | LdmTimesConfig,
    Field(discriminator="kind"),
]


def noisy_end(schedule: Schedule, time: float = 0.0) -> float:
    """The time itself if there is noise, else the first discrete step, the least noise there is."""
    here = schedule.at(torch.tensor(time, dtype=torch.float64, device="cpu"))
    if float(here.sigma) > 0 or not isinstance(schedule, DiscreteSchedule):
        return time
    return 1 / schedule.steps


def _to_clean(
    schedule: Schedule,
    steps: int,
    span: KarrasTimesConfig | LogSnrTimesConfig,
    grid: Callable[..., Tensor],
) -> Tensor:
    """`grid` of (steps, last) down to the least noise there is, then, if need be, to none."""
    start = schedule.at(torch.tensor(span.first, dtype=torch.float64, device="cpu"))
    if float(start.alpha) == 0:
        raise ValueError(
            f"times of kind {span.kind} need some signal at time {span.first:g}: choose uniform"
        )
    least = noisy_end(schedule, span.last)
    if least == span.last:
        return grid(steps, last=span.last)
    if steps < 2:
        raise ValueError(f"times of kind {span.kind} need 2 steps on this schedule")
    times = grid(steps - 1, last=least)
    return torch.cat([times, times.new_tensor([span.last])])


def _discrete(schedule: Schedule, steps: int, kind: str) -> int:
    """The schedule's number of discrete steps."""
    if not isinstance(schedule, DiscreteSchedule):
        raise ValueError(
            f"times of kind {kind} count discrete steps, but the model's schedule is in "
            "continuous time: choose uniform"
        )
    if steps > schedule.steps:
        raise ValueError(f"the schedule has {schedule.steps} steps, so {steps} cannot be taken")
    return schedule.steps
