"""What every solver offers, and the numbers along a grid of times that all of them need."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import torch
from torch import Generator, Tensor

from models.diffusion.parameterization import Prediction
from models.diffusion.process import Denoiser
from models.diffusion.schedules.schedule import Schedule

C = TypeVar("C")
ProgressCallback = Callable[[int, int], None]
"""Called with the steps done and their total."""


class Solver(Protocol):
    """Carries x along a grid of times."""

    order: int
    """Order of convergence of its deterministic form."""

    def solve(
        self,
        denoiser: Denoiser[C],
        x: Tensor,
        times: Tensor,
        cond: C,
        rng: Generator,
        progress: ProgressCallback | None = None,
    ) -> Tensor:
        """From x (B, ...) at times[0] to x at times[-1]."""
        ...


@dataclass(slots=True)
class SolverStep:
    """Where a solver stands after a step."""

    done: int
    """Steps of the grid behind it."""
    total: int
    time: float
    """times[done]."""
    x: Tensor
    """(B, ...) at that time."""
    guess: Prediction
    """The newest prediction used; `guess.x0` (B, ...) is what a preview shows."""


class IterativeSolver(ABC):
    """A solver that can be watched, stopped and drawn at every step."""

    order: int

    @abstractmethod
    def steps(
        self, denoiser: Denoiser[C], x: Tensor, times: Tensor, cond: C, rng: Generator
    ) -> Iterator[SolverStep]:
        """The steps from x (B, ...) at times[0] to times[-1], made as they are asked for."""
        ...

    def solve(
        self,
        denoiser: Denoiser[C],
        x: Tensor,
        times: Tensor,
        cond: C,
        rng: Generator,
        progress: ProgressCallback | None = None,
    ) -> Tensor:
        """From x (B, ...) at times[0] to x at times[-1]."""
        for step in self.steps(denoiser, x, times, cond, rng):
            x = step.x
            if progress is not None:
                progress(step.done, step.total)
        return x


@dataclass(frozen=True)
class TimeGrid:
    """Marginals at every time of a grid, as plain numbers in double precision."""

    t: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    half_log_snr: tuple[float, ...]
    """lambda = ln(alpha / sigma), the time of DPM-Solver: infinite without noise or signal."""

    @property
    def total(self) -> int:
        """Steps."""
        return len(self.t) - 1

    def ratio(self, place: int) -> float:
        """sigma / alpha, the noise level of x / alpha.

        Raises:
            ValueError: alpha is 0.
        """
        if self.alpha[place] == 0:
            raise ValueError("this solver needs some signal at every time, use DDIM or DDPM")
        return self.sigma[place] / self.alpha[place]

    def ends_clean(self, place: int) -> bool:
        """Whether no noise is left at this time, where lambda is infinite."""
        return self.sigma[place] == 0


def time_grid(schedule: Schedule, times: Tensor) -> TimeGrid:
    """The marginals at times (n + 1,), computed on the CPU and in fp64, once for many batches."""
    return _grid(schedule, tuple(times.detach().to(torch.float64).tolist()))


@lru_cache(maxsize=32)
def _grid(schedule: Schedule, times: tuple[float, ...]) -> TimeGrid:
    t = torch.tensor(times, dtype=torch.float64)
    here = schedule.at(t)
    half = here.alpha.log() - here.sigma.log()
    return TimeGrid(times, *(tuple(each.tolist()) for each in (here.alpha, here.sigma, half)))


def require_decreasing(times: Tensor, who: str) -> None:
    """Refuse times that do not fall.

    Raises:
        ValueError: they do not.
    """
    if not bool((times.diff() < 0).all()):
        raise ValueError(f"{who} needs falling times")


def call_denoiser(denoiser: Denoiser[C], x: Tensor, t: float, cond: C) -> Prediction:
    """The denoiser's guess for a batch that shares its time."""
    return denoiser(x, x.new_full(x.shape[:1], t), cond)


def batched_times(path: TimeGrid, x: Tensor) -> tuple[Tensor, ...]:
    """Every time of the grid for the batch x (B, ...), as a denoiser is told it: (B,) each."""
    return x.new_tensor(path.t)[:, None].expand(-1, len(x)).unbind()


def lincomb(x: Tensor, weight: Tensor | float, *others: tuple[Tensor, float]) -> Tensor:
    """weight x plus the others (B, ...) times theirs, in one pass over each."""
    total = x * weight
    for values, factor in others:
        total.add_(values, alpha=factor)
    return total


def scalars(values: Iterable[float], x: Tensor) -> tuple[Tensor, ...]:
    """Numbers to multiply x by, as tensors without dimensions: torch takes half the time for those.

    They are on the CPU, wherever x is, and in its precision.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return torch.tensor(list(values), dtype=torch.float64).to(dtype).unbind()
