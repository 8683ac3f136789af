"""95% intervals: Wilson's for proportions, the bootstrap for means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Z95 = 1.959963984540054
"""The 97.5% quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Score:
    """A value, its 95% interval [low, high], and the number n of samples it rests on."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int) -> Score:
    """Wilson's score interval for a proportion (Wilson 1927; Brown, Cai, DasGupta 2001, eq. 4).

    `successes` may be fractional: a mean of values in [0, 1] has at most the variance p(1 - p) of
    a coin, so the interval is then conservative. It never leaves [0, 1] and never has zero width.

    Raises:
        ValueError: n is not positive, or successes outside [0, n].
    """
    if n <= 0 or not 0.0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: need 0 <= successes <= n and n > 0")
    value = successes / n
    shrink = 1.0 + Z95**2 / n
    centre = (value + Z95**2 / (2 * n)) / shrink
    half = Z95 / shrink * math.sqrt(value * (1.0 - value) / n + Z95**2 / (4 * n**2))
    # At the two ends the interval touches its end exactly; whatever the rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Score(value=value, low=low, high=high, n=n)


def proportion(hits: Sequence[float]) -> Score:
    """Proportion of successes with Wilson's interval; one value in [0, 1] per caption."""
    return wilson(math.fsum(hits), len(hits))


def bootstrap_mean(values: Tensor, rng: torch.Generator, resamples: int = 2000) -> Score:
    """Mean of `values` (n,) with the percentile bootstrap's interval (Efron 1979)."""
    n = len(values)
    if n == 0:
        raise ValueError("cannot average no values at all")
    exact = values.double()
    indices = torch.randint(n, (resamples, n), generator=rng, device=rng.device)
    means = exact[indices].mean(dim=1)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64, device=means.device)
    low, high = torch.quantile(means, ends).tolist()
    return Score(value=exact.mean().item(), low=low, high=high, n=n)
