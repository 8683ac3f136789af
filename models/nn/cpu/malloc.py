"""How this process holds the memory that it has freed: glibc's settings; no others are needed."""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

KEPT = 2**28
"""Bytes of freed memory that a training process keeps at most at the end of its heap."""
MAPPED = 2**25
"""From this size on, memory is the system's at once when it is free: glibc's own limit."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""


@functools.cache
def _glibc(name: str) -> Callable[..., Any] | None:
    """One of glibc's own functions; None under another C library."""
    function: Callable[..., Any] | None = getattr(ctypes.CDLL(None), name, None)
    return function


def malloc_trim() -> None:
    """Hand pages that nothing uses back to the system.

    glibc keeps them in its heap otherwise: a process that drew and dropped one large tensor after
    the other would stay as large as if it held many.
    """
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def set_malloc_thresholds() -> None:
    """Keep what is freed at the end of the heap, for what is taken next: up to `KEPT`.

    glibc hands back what exceeds 64 MiB there, and a step of training takes as much again: finding
    the pages anew took 4 to 7% of a step of small UNets.
    """
    tune = _glibc("mallopt")
    if tune is not None:
        # one of them alone would leave the other at the value for small programs
        tune(_MMAP_THRESHOLD, MAPPED)
        tune(_TRIM_THRESHOLD, KEPT)
