"""Random times of training, and the weight that keeps a loss unbiased when they are not uniform."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor

from models.diffusion.schedules.marginal import Schedule

EDGE = 1e-4
"""Distance of continuous times from 0 and 1, where signal or noise may vanish."""


@dataclass(frozen=True)
class Timesteps:
    """Times of a batch."""

    t: Tensor
    """(B,) in [0, 1]."""
    weight: Tensor
    """(B,): multiply the loss of each by it."""


class TimestepSampler(Protocol):
    """A distribution of times."""

    def sample(self, count: int, rng: Generator, *, part: int = 0, parts: int = 1) -> Timesteps:
        """`count` times: those of one of the equal parts of a batch."""


class Uniform(BaseModel, frozen=True, extra="forbid"):
    """Independent and uniform in [0, 1]; with `steps`, among the N steps of a discrete schedule."""

    kind: Literal["uniform"] = "uniform"
    steps: int | None = Field(default=None, gt=0)

    def build(self, schedule: Schedule) -> TimestepSampler:
        return self

    def sample(self, count: int, rng: Generator, *, part: int = 0, parts: int = 1) -> Timesteps:
        return _plain(torch.rand(count, generator=rng, device=rng.device), self.steps)


class Stratified(BaseModel, frozen=True, extra="forbid"):
    """One time in each of parts x count equal strata (arXiv 2107.00630, appendix I.1).

    Every part, such as one process of many, has its own generator and takes every parts-th stratum,
    so all of [0, 1] is covered within a part and no stratum is taken twice.
    """

    kind: Literal["stratified"] = "stratified"
    steps: int | None = Field(default=None, gt=0)

    def build(self, schedule: Schedule) -> TimestepSampler:
        return self

    def sample(self, count: int, rng: Generator, *, part: int = 0, parts: int = 1) -> Timesteps:
        """`count` increasing times of weight 1."""
        uniform = torch.rand(count, generator=rng, device=rng.device)
        strata = torch.arange(count, device=rng.device) * parts + part
        return _plain((strata + uniform) / (count * parts), self.steps)


class LogNormal(BaseModel, frozen=True, extra="forbid"):
    """ln(sigma / alpha) ~ N(mean, std^2), as EDM trains (arXiv 2206.00364, table 1)."""

    kind: Literal["log_normal"] = "log_normal"
    mean: float = -1.2
    std: float = Field(default=1.2, gt=0)

    def build(self, schedule: Schedule) -> TimestepSampler:
        return LogNormalSampler(schedule, self.mean, self.std)


@dataclass(frozen=True)
class LogNormalSampler:
    """ln(sigma / alpha) ~ N(mean, std^2) under a schedule."""

    schedule: Schedule
    mean: float
    std: float

    def sample(self, count: int, rng: Generator, *, part: int = 0, parts: int = 1) -> Timesteps:
        """`count` times of weight 1, those beyond the schedule's ends at its ends."""
        levels = torch.randn(count, generator=rng, dtype=torch.float64, device=rng.device)
        t = self.schedule.inverse_log_snr(-2 * (self.mean + self.std * levels)).clamp(0, 1)
        return Timesteps(t.float(), torch.ones(count, device=rng.device))


class ImportanceConfig(BaseModel, frozen=True, extra="forbid"):
    """Steps in proportion to the size of their last losses; see `LossSecondMomentSampler`."""

    kind: Literal["importance"] = "importance"
    steps: int = Field(default=1000, gt=0)
    history: int = Field(default=10, gt=0)
    uniform: float = Field(default=0.001, ge=0, le=1)

    def build(self, schedule: Schedule) -> TimestepSampler:
        return LossSecondMomentSampler(self.steps, history=self.history, uniform=self.uniform)


TimestepsConfig = Annotated[
    Uniform | Stratified | LogNormal | ImportanceConfig, Field(discriminator="kind")
]


class LossSecondMomentSampler:
    """Steps in proportion to the root mean square of their last losses (arXiv 2102.09672, eq. 18).

    Uniform until every one of the N steps has `history` losses; `uniform` of the probability stays
    uniform. Its state is the tensors of `state`, and equal on all processes if each passes all
    processes' losses to `update`.
    """

    def __init__(self, steps: int, *, history: int = 10, uniform: float = 0.001) -> None:
        self._steps = steps
        self._uniform = uniform
        self._losses = torch.zeros(steps, history, dtype=torch.float64, device="cpu")
        self._counts = torch.zeros(steps, dtype=torch.int64, device="cpu")

    @property
    def probabilities(self) -> Tensor:
        """(N,), fp64, with sum 1."""
        if bool((self._counts < self._losses.shape[1]).any()):
            return torch.full((self._steps,), 1 / self._steps, dtype=torch.float64, device="cpu")
        sizes = self._losses.square().mean(dim=1).sqrt()
        if not float(sizes.sum()) > 0:
            return torch.full((self._steps,), 1 / self._steps, dtype=torch.float64, device="cpu")
        return (1 - self._uniform) * sizes / sizes.sum() + self._uniform / self._steps

    def sample(self, count: int, rng: Generator, *, part: int = 0, parts: int = 1) -> Timesteps:
        """`count` steps k / N, with weight 1 / (N p)."""
        odds = self.probabilities.to(rng.device)
        indices = torch.multinomial(odds, count, replacement=True, generator=rng)
        return Timesteps((indices + 1) / self._steps, (1 / (self._steps * odds[indices])).float())

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Unweighted losses (M,) at times (M,), from all processes and in one order."""
        indices = (t.detach().cpu().double() * self._steps).round().long() - 1
        for index, loss in zip(indices.tolist(), losses.detach().cpu().tolist(), strict=True):
            if not math.isfinite(loss):
                continue
            self._losses[index, self._counts[index] % self._losses.shape[1]] = loss
            self._counts[index] += 1

    def state(self) -> dict[str, Tensor]:
        return {"losses": self._losses.clone(), "counts": self._counts.clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._losses.copy_(state["losses"])
        self._counts.copy_(state["counts"])


def _plain(t: Tensor, steps: int | None) -> Timesteps:
    """Times inside their edges, or moved up to the next of N steps."""
    if steps is None:
        t = t.clamp(EDGE, 1 - EDGE)
    else:
        t = ((t * steps).floor().clamp(max=steps - 1) + 1) / steps
    return Timesteps(t, torch.ones_like(t))
