"""Freed memory goes back to the system: glibc's malloc; nothing under another C library."""

import ctypes


def malloc_trim() -> None:
    """Return pages that nothing uses to the system.

    glibc keeps them in its heap otherwise: a process that made and dropped one large tensor after
    the other would stay as large as if it held many.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
