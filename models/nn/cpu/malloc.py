"""glibc's malloc in processes that train or build large networks; under another libc nothing."""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

TRIM_THRESHOLD = 2**28
"""Bytes of freed memory that a training process keeps at most at the end of its heap."""
GLIBC_TRIM_THRESHOLD = 2**26
"""What glibc settles at by itself in a process that allocates large tensors."""
MMAP_THRESHOLD = 2**25
"""From this size on, memory goes back to the system as soon as it is freed: glibc's own limit."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""


@functools.cache
def _glibc(name: str) -> Callable[..., Any] | None:
    """One of glibc's own functions; None under another C library."""
    function: Callable[..., Any] | None = getattr(ctypes.CDLL(None), name, None)
    return function


def malloc_trim() -> None:
    """Return pages that nothing uses to the system.

    glibc keeps them in its heap otherwise: a process that made and dropped one large tensor after
    the other would stay as large as if it held many.
    """
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def set_malloc_thresholds(trim: int = TRIM_THRESHOLD) -> None:
    """Keep up to `trim` freed bytes at the end of the heap for the next allocations.

    glibc returns what exceeds 64 MiB there, and a training step allocates as much again: the page
    faults took 4 to 7% of a step of small UNets.
    """
    tune = _glibc("mallopt")
    if tune is not None:
        # one of them alone would leave the other at the value for small programs
        tune(_MMAP_THRESHOLD, MMAP_THRESHOLD)
        tune(_TRIM_THRESHOLD, trim)
