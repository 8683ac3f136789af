"""Grids of times for solvers: steps + 1 values, from noise to clean, in fp64 on the CPU."""

import math

import torch
from torch import Tensor

from models.diffusion.schedules.marginal import Schedule


def uniform_times(steps: int, *, first: float = 1.0, last: float = 0.0) -> Tensor:
    """Equal steps of t.

    On a discrete schedule from 1 to 0 these are the "trailing" steps of arXiv 2305.08891, table 2.
    """
    return torch.linspace(first, last, steps + 1, dtype=torch.float64, device="cpu")


def quadratic_times(steps: int, *, first: float = 1.0, last: float = 0.0) -> Tensor:
    """Equal steps of sqrt(t) (arXiv 2010.02502, appendix D.2)."""
    return _power_spaced(first, last, steps, 0.5)


def uniform_log_snr_times(
    schedule: Schedule, steps: int, *, first: float = 1.0, last: float = 0.0
) -> Tensor:
    """Equal steps of the log signal-to-noise ratio (as DPM-Solver, arXiv 2206.00927)."""
    start, end = _log_snr(schedule, first, last)
    times = schedule.inverse_log_snr(uniform_times(steps, first=start, last=end))
    times[0], times[-1] = first, last
    return times


def karras_times(
    schedule: Schedule, steps: int, *, rho: float = 7.0, first: float = 1.0, last: float = 0.0
) -> Tensor:
    """Equal steps of (sigma / alpha)^(1 / rho) (EDM, arXiv 2206.00364, eq. 5)."""
    high, low = (math.exp(-log_snr / 2) for log_snr in _log_snr(schedule, first, last))
    levels = _power_spaced(high, low, steps, 1 / rho)
    times = schedule.inverse_log_snr(-2 * levels.log())
    times[0], times[-1] = first, last
    return times


def trailing_times(train_steps: int, steps: int) -> Tensor:
    """Every (N / steps)-th of N discrete steps, from the last one (arXiv 2305.08891, table 2)."""
    stride = train_steps / steps
    offsets = stride * torch.arange(steps, dtype=torch.float64, device="cpu")
    return _with_clean((train_steps - offsets).round() / train_steps)


def leading_times(train_steps: int, steps: int, *, offset: int = 0) -> Tensor:
    """Steps 1, 1 + r, 1 + 2 r ... of N, r = N // steps, plus `offset` (as DDIM's released code)."""
    multiples = torch.arange(steps, dtype=torch.float64, device="cpu").flip(0)
    return _with_clean((multiples * (train_steps // steps) + 1 + offset) / train_steps)


def ldm_times(train_steps: int, steps: int) -> Tensor:
    """Steps 2, 2 + r, 2 + 2 r ... of N, r = N / steps, and the first step as their end.

    As in the released code of latent diffusion: its grid counts from 0 and adds 1, and the last
    step of DDIM goes to the alpha of its first step, not to the clean image.
    """
    multiples = torch.arange(steps, dtype=torch.float64, device="cpu").flip(0)
    times = (multiples * (train_steps // steps) + 2) / train_steps
    return torch.cat([times, times.new_tensor([1 / train_steps])])


def _log_snr(schedule: Schedule, first: float, last: float) -> list[float]:
    """ln(alpha^2 / sigma^2) at two times."""
    times = torch.tensor([first, last], dtype=torch.float64, device="cpu")
    return schedule.log_snr(times).tolist()


def _power_spaced(first: float, last: float, steps: int, power: float) -> Tensor:
    """Equal steps of value^power from `first` to `last`, both exact."""
    values = uniform_times(steps, first=first**power, last=last**power) ** (1 / power)
    values[0], values[-1] = first, last
    return values


def _with_clean(times: Tensor) -> Tensor:
    """The times, then 0."""
    return torch.cat([times, times.new_zeros(1)])
