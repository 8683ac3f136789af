"""The processes that share one piece of inference: who computes which block."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

Arrays = Mapping[str, Tensor]
"""Named tensors on the CPU."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among `size`; with more than one, torch.distributed is initialised (gloo)."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def all_gather(self, arrays: Arrays | None) -> list[Arrays | None]:
        """The arrays of all processes, by rank."""
        if self.size == 1:
            return [arrays]
        gathered: list[Arrays | None] = [None] * self.size
        dist.all_gather_object(gathered, arrays)
        return gathered

    def map_blocks(self, compute: Callable[[int], Arrays], count: int) -> Iterator[Arrays]:
        """`compute(index)` for index 0 to count - 1, in order and on every process.

        Process r computes the blocks r, r + size, ... whole, so arrays are the same for any number
        of processes as long as `compute` depends on the index alone.
        """
        for first in range(0, count, self.size):
            own = first + self.rank
            gathered = self.all_gather(compute(own) if own < count else None)
            yield from (arrays for arrays in gathered if arrays is not None)
