"""Freed memory goes back to the system: glibc's malloc; nothing under another C library."""

import ctypes
import functools
from collections.abc import Callable
from typing import Any


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
