"""Predictor-corrector sampling of score-based SDEs (arXiv 2011.13456, algorithms 2 to 5)."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from models.diffusion.solvers.solver import GridDenoiser, Solver, Steps, TimeGrid
from models.nn.random import randn_like


class PredictorCorrector(Solver, frozen=True, extra="forbid"):
    """Langevin steps at a time, then a reverse-diffusion step to the next.

    Both act on x / alpha with level u = sigma / alpha, where every process is the paper's VE
    (appendix E), its score -noise / u. The last step adds no noise.
    """

    decreasing_only: ClassVar[bool] = True
    kind: Literal["predictor_corrector"] = "predictor_corrector"
    corrections: int = Field(default=1, ge=0)
    """Langevin steps at each time."""
    snr: float = Field(default=0.16, gt=0)
    """The paper's signal-to-noise ratio r of a Langevin step."""

    @property
    def order(self) -> int | None:
        """None with corrections: the error of a Langevin step does not depend on the grid."""
        return None if self.corrections else 1

    def _iterate(self, denoise: GridDenoiser, x: Tensor, grid: TimeGrid, rng: Generator) -> Steps:
        for step in range(grid.total):
            now, then, alpha = grid.noise_level(step), grid.noise_level(step + 1), grid.alpha[step]
            scaled = x / alpha
            for _ in range(self.corrections):
                score = denoise(alpha * scaled, step).noise / -now
                scaled = self._langevin(scaled, score, rng)
            pred = denoise(alpha * scaled, step)
            fresh = now * now - then * then
            scaled = scaled - fresh / now * pred.noise
            if step + 1 < grid.total:
                scaled = scaled + math.sqrt(fresh) * randn_like(x, rng)
            x = grid.alpha[step + 1] * scaled
            yield grid.step(step + 1, x, pred)

    def _langevin(self, scaled: Tensor, score: Tensor, rng: Generator) -> Tensor:
        """Algorithm 4 or 5; the step's size is one for the batch, 2 (r |noise| / |score|)^2."""
        noise = randn_like(scaled, rng)
        size = (_mean_norm(noise) / _mean_norm(score) * self.snr) ** 2 * 2
        return scaled + size * score + torch.sqrt(2 * size) * noise


def _mean_norm(values: Tensor) -> Tensor:
    """The mean over the batch of the norms of (B, ...)."""
    return values.flatten(1).norm(dim=1).mean()
