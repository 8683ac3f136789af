"""New noise before a step, as EDM adds it (arXiv 2206.00364, algorithm 2, lines 3 to 6)."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from models.diffusion.schedules.schedule import Schedule
from models.diffusion.solvers.solver import TimeGrid
from models.nn.random import randn_like


@dataclass(frozen=True)
class Churn:
    """How much, between which noise levels sigma / alpha."""

    amount: float = 0.0
    """S_churn, spread over all steps."""
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0
    """S_noise: the new noise's standard deviation, a little above 1 for networks that blur."""

    def gamma(self, level: float, total: int) -> float:
        """gamma: by how much one of `total` steps raises its noise level."""
        inside = self.low <= level <= self.high
        return min(self.amount / total, math.sqrt(2) - 1) if inside else 0.0


@dataclass(slots=True)
class Start:
    """Where a step starts."""

    time: float
    alpha: float
    level: float
    """sigma / alpha."""
    x: Tensor
    """(B, ...)."""


def start(
    churn: Churn, schedule: Schedule, path: TimeGrid, step: int, x: Tensor, rng: Generator
) -> Start:
    """x (B, ...) at the step's time, with more noise at an earlier time where there is churn."""
    level, alpha = path.ratio(step), path.alpha[step]
    gamma = churn.gamma(level, path.total)
    if not gamma:
        return Start(path.t[step], alpha, level, x)
    raised = level * (1 + gamma)
    added = churn.noise * math.sqrt(raised * raised - level * level)
    time = schedule.inverse_log_snr(torch.tensor(-2 * math.log(raised), dtype=torch.float64))
    earlier = float(schedule.at(time).alpha)
    noisier = earlier * (x / alpha + added * randn_like(x, rng))
    return Start(float(time), earlier, raised, noisier)
