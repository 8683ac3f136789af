"""Grids of times for solvers: steps + 1 values, from noise to clean."""

import torch
from torch import Tensor

from models.diffusion.schedule import Schedule


def uniform_times(steps: int, *, first: float = 1.0, last: float = 0.0) -> Tensor:
    """Equal steps of t, in fp64."""
    return torch.linspace(first, last, steps + 1, dtype=torch.float64)


def uniform_log_snr_times(
    schedule: Schedule, steps: int, *, first: float = 1.0, last: float = 0.0
) -> Tensor:
    """Equal steps of the log signal-to-noise ratio, in fp64 (as DPM-Solver, arXiv 2206.00927)."""
    ends = schedule.log_snr(torch.tensor([first, last], dtype=torch.float64))
    grid = torch.linspace(float(ends[0]), float(ends[1]), steps + 1, dtype=torch.float64)
    times = schedule.time_of(grid)
    times[0], times[-1] = first, last
    return times
