"""Freed memory is returned to the system, or kept for the next allocations."""

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

AGAIN = """
import resource
import torch
from models.nn.cpu.malloc import set_malloc_thresholds

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(1 << 18) for _ in range(150)]  # 1 MiB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {keeps}:
    set_malloc_thresholds()
print(*(faults() for _ in range(4)))
"""

glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="needs glibc",
)


def printed(script):
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return [float(number) for number in done.stdout.split()]


@glibc
def test_a_training_process_reuses_the_pages_that_it_freed():
    pages = 150 * 256
    assert max(printed(AGAIN.format(keeps=True))[1:]) < pages / 5
    assert max(printed(AGAIN.format(keeps=False))[1:]) > pages / 2, "glibc does so by itself"


@glibc
def test_free_memory_below_live_memory_is_returned():
    grown, left, held = printed(ALONE)
    assert grown > 100 << 20
    assert left < grown / 4
    assert held == 1 << 14
