"""Grids of times for solvers: steps + 1 values, from noise to clean, in fp64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.diffusion.schedules.schedule import Schedule


def uniform_times(steps: int, *, first: float = 1.0, last: float = 0.0) -> Tensor:
    """Equal steps of t.

    On a discrete schedule from 1 to 0 these are the "trailing" steps of arXiv 2305.08891, table 2.
    """
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def quadratic_times(steps: int, *, first: float = 1.0, last: float = 0.0) -> Tensor:
    """Equal steps of sqrt(t) (arXiv 2010.02502, appendix D.2)."""
    return _powers(first, last, steps, 0.5)


def uniform_log_snr_times(
    schedule: Schedule, steps: int, *, first: float = 1.0, last: float = 0.0
) -> Tensor:
    """Equal steps of the log signal-to-noise ratio (as DPM-Solver, arXiv 2206.00927)."""
    ends = schedule.log_snr(torch.tensor([first, last], dtype=torch.float64))
    grid = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    times = schedule.inverse_log_snr(grid)
    times[0], times[-1] = first, last
    return times


def karras_times(
    schedule: Schedule, steps: int, *, rho: float = 7.0, first: float = 1.0, last: float = 0.0
) -> Tensor:
    """Equal steps of (sigma / alpha)^(1 / rho) (EDM, arXiv 2206.00364, eq. 5)."""
    ends = schedule.log_snr(torch.tensor([first, last], dtype=torch.float64))
    low, high = (-ends / 2).exp().tolist()[::-1]
    levels = _powers(high, low, steps, 1 / rho)
    times = schedule.inverse_log_snr(-2 * levels.log())
    times[0], times[-1] = first, last
    return times


def trailing_times(train_steps: int, steps: int) -> Tensor:
    """Every (N / steps)-th of N discrete steps, from the last one (arXiv 2305.08891, table 2)."""
    stride = train_steps / steps
    places = (train_steps - stride * torch.arange(steps, dtype=torch.float64)).round()
    return _with_clean(places / train_steps)


def leading_times(train_steps: int, steps: int, *, offset: int = 0) -> Tensor:
    """Steps 1, 1 + r, 1 + 2 r ... of N, r = N // steps, plus `offset` (as DDIM's released code)."""
    places = torch.arange(steps, dtype=torch.float64).flip(0) * (train_steps // steps)
    return _with_clean((places + 1 + offset) / train_steps)


def respaced_times(train_steps: int, sections: Sequence[int]) -> Tensor:
    """N discrete steps in equal sections, of each so many steps (ADM's "10,10,15,30").

    A section keeps its first and last step (arXiv 2102.09672, section 4). `sections` starts at the
    clean end.

    Raises:
        ValueError: a section is asked for more steps than it has.
    """
    size, extra = divmod(train_steps, len(sections))
    kept: list[int] = []
    start = 1
    for place, count in enumerate(sections):
        length = size + (1 if place < extra else 0)
        if not 0 < count <= length:
            raise ValueError(f"cannot take {count} of the {length} steps of section {place + 1}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        kept += [start + round(stride * step) for step in range(count)]
        start += length
    return _with_clean(torch.tensor(kept[::-1], dtype=torch.float64) / train_steps)


def _powers(first: float, last: float, steps: int, power: float) -> Tensor:
    """Equal steps of value^power from `first` to `last`, both exact."""
    grid = torch.linspace(first**power, last**power, steps + 1, dtype=torch.float64)
    values = grid ** (1 / power)
    values[0], values[-1] = first, last
    return values


def _with_clean(times: Tensor) -> Tensor:
    """The times, then 0."""
    return torch.cat([times, times.new_zeros(1)])
