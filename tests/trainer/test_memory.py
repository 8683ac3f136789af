"""What is free again goes back to the system."""

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from trainer.memory import give_back


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="only glibc keeps and gives back",
)
def test_free_memory_below_what_is_held_goes_back():
    give_back()  # what others left
    before = resident()
    held = [torch.ones(1 << 14) for _ in range(2000)]  # 64 KiB each, too small for mmap
    assert resident() - before > 100 << 20
    del held[:-1]  # the last stands above them in the heap
    give_back()
    assert resident() - before < 20 << 20
    assert float(held[0].sum()) == 1 << 14
