"""Likelihoods by the probability-flow ODE (arXiv 2011.13456, section 4.3 and appendix D.2)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule
from models.diffusion.solvers.solver import ProgressCallback, TimeGrid, call_denoiser, time_grid
from models.nn.random import coins, normal, uniform

C = TypeVar("C")
Field = Callable[[Tensor], Tensor]
"""(B, ...) to (B, ...), each sample by itself."""


@dataclass(frozen=True)
class Flow:
    """A vector field at a batch of points."""

    value: Tensor
    """(B, ...)."""
    trace: Tensor
    """(B,): the trace of its Jacobian, exact or an unbiased estimate."""


Divergence = Callable[[Field, Tensor], Flow]
"""The field and its trace at points (B, ...)."""


class Hutchinson:
    """The mean of v^T J v over random probes v, sampled once: the same along the whole path.

    Skilling and Hutchinson's estimator; with signs (Rademacher) it is exact for diagonal J.
    """

    def __init__(
        self,
        like: Tensor,
        rng: Generator,
        *,
        probes: int = 1,
        distribution: Literal["signs", "normal"] = "signs",
    ) -> None:
        """Probes for points shaped as `like` (B, ...)."""
        shape = (len(like), probes, *like.shape[1:])
        if distribution == "signs":
            found = coins(shape, rng).to(like) * 2 - 1
        else:
            found = normal(shape, rng, like.device, like.dtype)
        self._probes = found.transpose(0, 1)

    def __call__(self, field: Field, x: Tensor) -> Flow:
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            value = field(point)
            traces = []
            for probe in self._probes:
                (row,) = torch.autograd.grad(value, point, probe, retain_graph=True)
                traces.append((row * probe).flatten(1).sum(dim=1))
        return Flow(value.detach(), torch.stack(traces).mean(dim=0))


@dataclass(frozen=True)
class Likelihood:
    """ln p(x) of samples, in nats, and its parts."""

    log_density: Tensor
    """(B,): at the first of the times."""
    latent: Tensor
    """(B, ...): where the flow carries x, at the last of the times."""
    prior: Tensor
    """(B,): ln density of the latent."""
    change: Tensor
    """(B,): ln |det| of the flow, log_density = prior + change."""


def log_likelihood(
    denoiser: Denoiser[C],
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    condition: C,
    divergence: Divergence,
    *,
    prior: Callable[[Tensor], Tensor] | None = None,
    progress: ProgressCallback | None = None,
) -> Likelihood:
    """ln p of x (B, ...), by Heun steps of the flow along increasing times, two calls each.

    In y = x / alpha and u = sigma / alpha the flow is dy/du = noise, and ln p(y) falls by the trace
    of its Jacobian. That of standard normal data, d u / (1 + u^2), is integrated exactly, so only
    the difference to it is left to the steps. Data and x at times[0] differ by the little noise
    there. `prior` is the log density (B,) at times[-1], if not given that of N(0, sigma^2).

    Raises:
        ValueError: times that do not increase.
    """
    if not bool((times.diff() > 0).all()):
        raise ValueError("the likelihood needs increasing times, from data to noise")
    grid = time_grid(schedule, times)
    scaled, size = x / grid.alpha[0], x[0].numel()
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for step in range(grid.total):
        width = grid.noise_level(step + 1) - grid.noise_level(step)
        here = divergence(_field(denoiser, grid, step, condition), scaled)
        there = divergence(_field(denoiser, grid, step + 1, condition), scaled + width * here.value)
        scaled = scaled + width / 2 * (here.value + there.value)
        normal = size * (
            _normal_trace(grid.noise_level(step)) + _normal_trace(grid.noise_level(step + 1))
        )
        total = total + width / 2 * (here.trace + there.trace - normal)
        if progress is not None:
            progress(step + 1, grid.total)
    latent = grid.alpha[-1] * scaled
    total = total + size / 2 * math.log(
        (1 + grid.noise_level(grid.total) ** 2) / (1 + grid.noise_level(0) ** 2)
    )
    change = total + size * (math.log(grid.alpha[-1]) - math.log(grid.alpha[0]))
    end = prior(latent) if prior is not None else _log_normal(latent, grid.sigma[-1])
    return Likelihood(end + change, latent, end, change)


def _field(denoiser: Denoiser[C], grid: TimeGrid, index: int, condition: C) -> Field:
    """y to the noise in it, at one time."""

    def field(scaled: Tensor) -> Tensor:
        return call_denoiser(denoiser, grid.alpha[index] * scaled, grid.t[index], condition).noise

    return field


def _normal_trace(level: float) -> float:
    """The trace per dimension for standard normal data at level u."""
    return level / (1 + level * level)


def _log_normal(x: Tensor, std: float) -> Tensor:
    """ln N(x; 0, std^2), (B,)."""
    size = x[0].numel()
    squares = x.flatten(1).square().sum(dim=1) / std**2
    return -0.5 * (squares + size * math.log(2 * math.pi * std**2))


def dequantized(levels: Tensor, rng: Generator, *, count: int = 256) -> Tensor:
    """Integer levels 0 to count - 1, (B, ...), plus uniform noise in [0, 1), mapped to [-1, 1).

    Uniform dequantisation: E ln p of the result is a lower bound of the discrete ln P.
    """
    noise = uniform(levels.shape, rng, levels.device, torch.float64)
    return ((levels + noise) * (2 / count) - 1).to(torch.get_default_dtype())


def bits_per_value(log_density: Tensor, size: int, *, count: int = 256) -> Tensor:
    """Bits per value of the discrete data behind `dequantized` samples of `size` values, (B,).

    -ln p / (size ln 2) + log2(count / 2): a bin is 2 / count wide. For 256 levels the added
    constant is 7.
    """
    return -log_density / (size * math.log(2)) + math.log2(count / 2)
