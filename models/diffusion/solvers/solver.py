"""The base of all solvers, and the numbers along a grid of times that they share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self, TypeVar

import torch
from pydantic import BaseModel
from torch import Generator, Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule

C = TypeVar("C")
ProgressCallback = Callable[[int, int], None]
"""Called with the number of finished steps and their total."""


@dataclass(slots=True)
class SolverStep:
    """The state of a solver after a step."""

    done: int
    """Number of finished steps."""
    total: int
    time: float
    """times[done]."""
    x: Tensor
    """(B, ...) at that time."""
    prediction: Prediction
    """The newest prediction used; `prediction.x0` (B, ...) is what a preview shows."""


Steps = Iterator[SolverStep]
"""The states along a grid, each computed when it is requested."""


@dataclass(frozen=True)
class TimeGrid:
    """Marginals at every time of a grid, as plain numbers in double precision."""

    schedule: Schedule
    t: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    half_log_snr: tuple[float, ...]
    """lambda = ln(alpha / sigma), the time of DPM-Solver: infinite without noise or signal."""

    @property
    def total(self) -> int:
        """Number of steps."""
        return len(self.t) - 1

    def noise_level(self, index: int) -> float:
        """sigma / alpha, the standard deviation of the noise in x / alpha.

        Raises:
            ValueError: alpha is 0.
        """
        if self.alpha[index] == 0:
            raise ValueError("this solver needs some signal at every time, use DDIM or DDPM")
        return self.sigma[index] / self.alpha[index]

    def is_clean(self, index: int) -> bool:
        """Whether no noise is left at this time, where lambda is infinite."""
        return self.sigma[index] == 0

    def forward_variance(self, step: int) -> float:
        """var_ts = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2 of q(x_t | x_s), t = t[step]."""
        ratio = self.alpha[step] / self.alpha[step + 1]
        now, then = self.sigma[step], self.sigma[step + 1]
        return max(now * now - ratio * ratio * then * then, 0.0)

    def posterior_std(self, step: int) -> float:
        """sqrt(var_ts) sigma_s / sigma_t of q(x_s | x_t, x_0) (arXiv 2006.11239, eq. 7)."""
        return math.sqrt(self.forward_variance(step)) * self.sigma[step + 1] / self.sigma[step]

    def step(self, done: int, x: Tensor, prediction: Prediction) -> SolverStep:
        """The state x (B, ...) after `done` steps."""
        return SolverStep(done, self.total, self.t[done], x, prediction)


def time_grid(schedule: Schedule, times: Tensor) -> TimeGrid:
    """The marginals at times (n + 1,), computed on the CPU in fp64, once for many batches."""
    return _time_grid(schedule, tuple(times.detach().to(torch.float64).tolist()))


@lru_cache(maxsize=32)
def _time_grid(schedule: Schedule, times: tuple[float, ...]) -> TimeGrid:
    here = schedule.at(torch.tensor(times, dtype=torch.float64, device="cpu"))
    half = here.alpha.log() - here.sigma.log()
    numbers = (tuple(each.tolist()) for each in (here.alpha, here.sigma, half))
    return TimeGrid(schedule, times, *numbers)


@dataclass(frozen=True, slots=True)
class GridDenoiser:
    """A denoiser with its condition, for a batch that shares its time."""

    call: Callable[[Tensor, Tensor], Prediction]
    """x (B, ...) and times (B,) to a prediction."""
    times: tuple[Tensor, ...]
    """Every time of the grid, (B,) each."""

    def __call__(self, x: Tensor, index: int) -> Prediction:
        """The prediction for x (B, ...) at a position of the grid."""
        return self.call(x, self.times[index])


class Solver(BaseModel, ABC, frozen=True, extra="forbid"):
    """Integrates x along a grid of times; the fields are the settings of a recipe."""

    decreasing_only: ClassVar[bool] = False
    """Whether it adds noise, so that it cannot run along increasing times."""

    fixed_order: ClassVar[int] = 1
    """The order where it does not depend on the settings."""

    @property
    def order(self) -> int | None:
        """Order of convergence, of the distribution where noise is added; None without one."""
        return self.fixed_order

    def check(self, steps: int) -> None:
        """Refuse a number of steps that the settings do not fit.

        Raises:
            ValueError: they do not.
        """

    def from_step(self, first: int) -> Self:
        """The solver of the rest of its grid, without the first steps."""
        return self

    @abstractmethod
    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        """The steps from x (B, ...) at the grid's first time to its last."""

    def steps(
        self,
        schedule: Schedule,
        denoiser: Denoiser[C],
        x: Tensor,
        times: Tensor,
        condition: C,
        rng: Generator,
    ) -> Steps:
        """The steps from x (B, ...) at times[0] to times[-1], each computed when it is requested.

        Raises:
            ValueError: times that do not decrease, for a solver that needs it, or a number of steps
                that the settings do not fit.
        """
        if self.decreasing_only and not bool((times.diff() < 0).all()):
            raise ValueError(f"{type(self).__name__} needs decreasing times")
        grid = time_grid(schedule, times)
        self.check(grid.total)
        batched = x.new_tensor(grid.t)[:, None].expand(-1, len(x)).unbind()
        bound = GridDenoiser(lambda x, t: denoiser(x, t, condition), batched)
        return self._iterate(bound, x, grid, rng)

    def solve(
        self,
        schedule: Schedule,
        denoiser: Denoiser[C],
        x: Tensor,
        times: Tensor,
        condition: C,
        rng: Generator,
        progress: ProgressCallback | None = None,
    ) -> Tensor:
        """From x (B, ...) at times[0] to x at times[-1]."""
        for step in self.steps(schedule, denoiser, x, times, condition, rng):
            x = step.x
            if progress is not None:
                progress(step.done, step.total)
        return x


def call_denoiser(denoiser: Denoiser[C], x: Tensor, t: float, condition: C) -> Prediction:
    """The prediction for a batch (B, ...) that shares its time."""
    return denoiser(x, x.new_full(x.shape[:1], t), condition)


def lincomb(x: Tensor, weight: Tensor | float, *others: tuple[Tensor, float]) -> Tensor:
    """weight x plus the others (B, ...) times theirs, in one pass over each."""
    total = x * weight
    for values, factor in others:
        total.add_(values, alpha=factor)
    return total


def scalars(values: Iterable[float], x: Tensor) -> tuple[Tensor, ...]:
    """Numbers to multiply x by, as 0-dimensional tensors: torch takes half the time for those.

    They are on the CPU, wherever x is, and in its precision.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.tensor(list(values), dtype=torch.float64, device="cpu").to(dtype).unbind()
