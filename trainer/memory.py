"""Memory that is free again, given back to the system."""

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None under another C library."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


def give_back() -> None:
    """Hand pages that nothing uses back to the system.

    glibc keeps them in its heap otherwise: a process that drew and dropped one large tensor after
    the other would stay as large as if it held many.
    """
    trim = _trim()
    if trim is not None:
        trim(0)
