"""New noise before a step, as EDM adds it (arXiv 2206.00364, algorithm 2, lines 3 to 6)."""

import math
from dataclasses import dataclass

import torch
from pydantic import BaseModel, Field
from torch import Generator, Tensor

from models.diffusion.solvers.solver import GridDenoiser, TimeGrid
from models.nn.random import randn_like


class Churn(BaseModel, frozen=True, extra="forbid"):
    """How much noise is added, between which noise levels sigma / alpha."""

    amount: float = Field(default=0.0, ge=0)
    """S_churn, spread over all steps."""
    low: float = Field(default=0.0, ge=0)
    high: float | None = Field(default=None, gt=0)
    noise: float = Field(default=1.0, gt=0)
    """S_noise: the new noise's standard deviation, a little above 1 for networks that blur."""

    def gamma(self, level: float, total: int) -> float:
        """The relative increase of the noise level by one of `total` steps."""
        inside = self.low <= level <= (math.inf if self.high is None else self.high)
        return min(self.amount / total, math.sqrt(2) - 1) if inside else 0.0


@dataclass(slots=True)
class StepStart:
    """The point from which a step starts."""

    x: Tensor
    """(B, ...)."""
    t: Tensor
    """(B,)."""
    alpha: float
    level: float
    """sigma / alpha."""


def start_step(
    churn: Churn, denoise: GridDenoiser, grid: TimeGrid, step: int, x: Tensor, rng: Generator
) -> StepStart:
    """x (B, ...) at the step's time, with more noise at an earlier time where there is churn."""
    level, alpha = grid.noise_level(step), grid.alpha[step]
    gamma = churn.gamma(level, grid.total)
    if not gamma:
        return StepStart(x, denoise.times[step], alpha, level)
    raised = level * (1 + gamma)
    added = churn.noise * math.sqrt(raised * raised - level * level)
    log_snr = torch.tensor(-2 * math.log(raised), dtype=torch.float64, device="cpu")
    time = grid.schedule.inverse_log_snr(log_snr)
    earlier = float(grid.schedule.at(time).alpha)
    noisier = earlier * (x / alpha + added * randn_like(x, rng))
    return StepStart(noisier, x.new_full((len(x),), float(time)), earlier, raised)
