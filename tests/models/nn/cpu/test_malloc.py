"""Freed memory is returned to the system."""

import ctypes
import subprocess
import sys

import pytest

ALONE = """
from pathlib import Path
import torch
from models.nn.cpu.malloc import malloc_trim

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

before = resident()
held = [torch.ones(1 << 14) for _ in range(2000)]  # 64 KiB each, too small for mmap
grown = resident() - before
del held[:-1]  # the last stands above them in the heap
malloc_trim()
print(grown, resident() - before, float(held[0].sum()))
"""

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="needs glibc",
)


def printed(script):
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return [float(number) for number in done.stdout.split()]


@glibc
def test_free_memory_below_live_memory_is_returned():
    grown, left, held = printed(ALONE)
    assert grown > 100 << 20
    assert left < grown / 4
    assert held == 1 << 14
