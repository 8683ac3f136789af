"""What is free again goes back to the system."""

import ctypes
import subprocess
import sys

import pytest

ALONE = """
from pathlib import Path
import torch
from trainer.memory import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

before = resident()
held = [torch.ones(1 << 14) for _ in range(2000)]  # 64 KiB each, too small for mmap
grown = resident() - before
del held[:-1]  # the last stands above them in the heap
give_back()
print(grown, resident() - before, float(held[0].sum()))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="only glibc keeps and gives back",
)
def test_free_memory_below_what_is_held_goes_back():
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, check=True, timeout=120
    )
    grown, left, held = (float(word) for word in done.stdout.split())
    assert grown > 100 << 20
    assert left < grown / 4
    assert held == 1 << 14
