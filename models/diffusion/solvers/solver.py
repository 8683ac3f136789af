"""What every solver offers."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Generator, Tensor

from models.diffusion.process import Denoiser

C = TypeVar("C")
Progress = Callable[[int, int], None]
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
        progress: Progress | None = None,
    ) -> Tensor:
        """From x (B, ...) at times[0] to x at times[-1]."""
        ...
