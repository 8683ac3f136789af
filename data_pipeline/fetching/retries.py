"""When a failed transfer is tried again."""

from collections.abc import Iterator

import numpy as np

ATTEMPTS = 4
_LONGEST_WAIT = 30.0
_FIXED_SECONDS = 600.0
_SLOWEST = 5e5


def waits(first: float) -> Iterator[float]:
    """Seconds before each later attempt: about `first`, then twice as long each time.

    They vary by half, so that the nodes of a cluster do not return to an overloaded store all at
    once.
    """
    generator = np.random.default_rng()  # of its own: training's numbers stay as they are
    for attempt in range(ATTEMPTS - 1):
        yield min(first * 2**attempt, _LONGEST_WAIT) * float(generator.uniform(0.5, 1.5))


def time_limit(size: int) -> float:
    """Seconds after which no further attempt is made, and one that runs is aborted."""
    return _FIXED_SECONDS + size / _SLOWEST
