"""glibc's malloc in processes that train or build large networks; under another libc nothing."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Names of settings in glibc's malloc.h."""


def malloc_trim() -> None:
    """Return pages that nothing uses to the system.

    glibc keeps them in its heap otherwise: a process that made and dropped one large tensor after
    the other would stay as large as if it held many.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def set_malloc_thresholds() -> None:
    """Keep up to 256 MiB of freed memory at the end of the heap for the next allocations.

    glibc returns what exceeds 64 MiB there, and a training step allocates as much again: page
    faults take 5 to 7% of a step of small networks. From 32 MiB on, glibc's own limit, memory is
    still returned as soon as it is freed.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        # one of them alone would leave the other at the value for small programs
        tune(_MMAP_THRESHOLD, 2**25)
        tune(_TRIM_THRESHOLD, 2**28)
