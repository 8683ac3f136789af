"""Likelihoods by the probability-flow ODE (arXiv 2011.13456, section 4.3 and appendix D.2)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
from torch import Generator, Tensor

from models.diffusion.process import Denoiser
from models.diffusion.schedules.marginal import Schedule
from models.diffusion.solvers.solver import ProgressCallback, TimeGrid, call_denoiser, time_grid
from models.nn.random import normal

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


class Divergence(Protocol):
    """A way to the trace of a Jacobian."""

    def __call__(self, field: Field, x: Tensor) -> Flow:
        """The field and its trace at points (B, ...)."""
        ...


class ExactTrace:
    """One backward pass per dimension: for small ones."""

    def __call__(self, field: Field, x: Tensor) -> Flow:
        """The field and its trace at points (B, ...)."""
        with torch.enable_grad():
            place = x.detach().requires_grad_()
            value = field(place)
            flat = value.flatten(1)
            trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
            for axis in range(flat.shape[1]):
                (row,) = torch.autograd.grad(flat[:, axis].sum(), place, retain_graph=True)
                trace = trace + row.flatten(1)[:, axis]
        return Flow(value.detach(), trace)


class Hutchinson:
    """The mean of v^T J v over random probes v, drawn once: the same along the whole path.

    Skilling and Hutchinson's estimator; with signs (Rademacher) it is exact for diagonal J.
    """

    def __init__(
        self,
        like: Tensor,
        rng: Generator,
        *,
        probes: int = 1,
        law: Literal["signs", "normal"] = "signs",
    ) -> None:
        """Probes for points shaped as `like` (B, ...)."""
        shape = (probes, *like.shape)
        if law == "signs":
            coins = torch.randint(2, shape, generator=rng, device=rng.device).to(like)
            self._probes = coins * 2 - 1
        else:
            self._probes = normal(shape, rng, like.device, like.dtype)

    def __call__(self, field: Field, x: Tensor) -> Flow:
        """The field and an estimate of its trace at points (B, ...)."""
        with torch.enable_grad():
            place = x.detach().requires_grad_()
            value = field(place)
            traces = []
            for probe in self._probes:
                (row,) = torch.autograd.grad(value, place, probe, retain_graph=True)
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
    cond: C,
    divergence: Divergence,
    *,
    prior: Callable[[Tensor], Tensor] | None = None,
    progress: ProgressCallback | None = None,
) -> Likelihood:
    """ln p of x (B, ...), by Heun steps of the flow along rising times, two calls each.

    In y = x / alpha and u = sigma / alpha the flow is dy/du = noise, and ln p(y) falls by the trace
    of its Jacobian. That of standard normal data, d u / (1 + u^2), is integrated exactly, so only
    the difference to it is left to the steps. Data and x at times[0] differ by the little noise
    there. `prior` is the log density (B,) at times[-1], if not given that of N(0, sigma^2).

    Raises:
        ValueError: times that do not rise.
    """
    if not bool((times.diff() > 0).all()):
        raise ValueError("the likelihood needs rising times, from data to noise")
    path = time_grid(schedule, times)
    scaled, size = x / path.alpha[0], x[0].numel()
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for step in range(path.total):
        width = path.ratio(step + 1) - path.ratio(step)
        here = divergence(_field(denoiser, path, step, cond), scaled)
        there = divergence(_field(denoiser, path, step + 1, cond), scaled + width * here.value)
        scaled = scaled + width / 2 * (here.value + there.value)
        usual = size * (_usual(path.ratio(step)) + _usual(path.ratio(step + 1)))
        total = total + width / 2 * (here.trace + there.trace - usual)
        if progress is not None:
            progress(step + 1, path.total)
    latent = path.alpha[-1] * scaled
    total = total + size / 2 * math.log(
        (1 + path.ratio(path.total) ** 2) / (1 + path.ratio(0) ** 2)
    )
    change = total + size * (math.log(path.alpha[-1]) - math.log(path.alpha[0]))
    end = prior(latent) if prior is not None else _normal(latent, path.sigma[-1])
    return Likelihood(end + change, latent, end, change)


def _field(denoiser: Denoiser[C], path: TimeGrid, place: int, cond: C) -> Field:
    """y to the noise in it, at one time."""

    def field(scaled: Tensor) -> Tensor:
        return call_denoiser(denoiser, path.alpha[place] * scaled, path.t[place], cond).noise

    return field


def _usual(level: float) -> float:
    """The trace per dimension for standard normal data at level u."""
    return level / (1 + level * level)


def _normal(x: Tensor, deviation: float) -> Tensor:
    """ln N(x; 0, deviation^2), (B,)."""
    size = x[0].numel()
    squares = x.flatten(1).square().sum(dim=1) / deviation**2
    return -0.5 * (squares + size * math.log(2 * math.pi * deviation**2))


def dequantized(levels: Tensor, rng: Generator, *, count: int = 256) -> Tensor:
    """Whole levels 0 to count - 1, (B, ...), plus uniform noise in [0, 1), mapped to [-1, 1).

    Uniform dequantisation: E ln p of the result is a lower bound of the discrete ln P.
    """
    noise = torch.rand(levels.shape, generator=rng, dtype=torch.float64, device=levels.device)
    return ((levels + noise) * (2 / count) - 1).to(torch.get_default_dtype())


def bits_per_value(log_density: Tensor, size: int, *, count: int = 256) -> Tensor:
    """Bits per value of the discrete data behind `dequantized` samples of `size` values, (B,).

    -ln p / (size ln 2) + log2(count / 2): a bin is 2 / count wide. For 256 levels the added
    constant is 7.
    """
    return -log_density / (size * math.log(2)) + math.log2(count / 2)
