"""DDIM (arXiv 2010.02502)."""

from typing import TypeVar

import torch
from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedule import Schedule
from models.diffusion.solvers.solver import Progress
from models.nn.random import normal_like

C = TypeVar("C")


class DDIM:
    """Equation 12: eta 0 is deterministic and runs both ways (inversion), eta 1 is ancestral."""

    order = 1

    def __init__(self, schedule: Schedule, eta: float = 0.0) -> None:
        if eta < 0:
            raise ValueError(f"eta must not be negative, got {eta}")
        self._schedule = schedule
        self._eta = eta

    def solve(
        self,
        denoiser: Denoiser[C],
        x: Tensor,
        times: Tensor,
        cond: C,
        rng: Generator,
        progress: Progress | None = None,
    ) -> Tensor:
        """From x (B, ...) at times[0] to x at times[-1]; rising times invert.

        Raises:
            ValueError: rising times with eta > 0, which has no inverse.
        """
        times = times.to(x.device)
        if self._eta and bool((times.diff() > 0).any()):
            raise ValueError("only eta 0 can be inverted")
        marginals = self._schedule.at(times)
        alphas, sigmas = marginals.alpha, marginals.sigma
        total = len(times) - 1
        for step in range(total):
            t = times[step].to(x.dtype).expand(len(x))
            guess = denoiser(x, t, cond)
            kept = sigmas[step + 1]
            noise = self._deviation(alphas, sigmas, step) if self._eta else None
            if noise is not None:
                kept = (kept**2 - noise**2).clamp(min=0).sqrt()
            x = alphas[step + 1].to(x.dtype) * guess.x0 + kept.to(x.dtype) * guess.noise
            if noise is not None:
                x = x + noise.to(x.dtype) * normal_like(x, rng)
            if progress is not None:
                progress(step + 1, total)
        return x

    def _deviation(self, alphas: Tensor, sigmas: Tensor, step: int) -> Tensor:
        """Standard deviation of the new noise, equation 16."""
        ratio = alphas[step] / alphas[step + 1]
        share: Tensor = sigmas[step + 1] / sigmas[step] * torch.sqrt(1 - ratio**2)
        return self._eta * share
