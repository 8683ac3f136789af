"""The processes that share one piece of inference: who computes which block."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

Arrays = Mapping[str, Tensor]
"""Named tensors on the CPU."""
Progress = Callable[[int, int], None]
"""Called with the items that are done and their total."""


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

    def share(self, number: int) -> int:
        """The number of the main process."""
        found = self.all_gather({"number": torch.tensor(number, device="cpu")})[0]
        assert found is not None, "every process has one"
        return int(found["number"])

    def map_blocks(
        self,
        compute: Callable[[range], Arrays],
        count: int,
        size: int,
        progress: Progress | None = None,
    ) -> Iterator[Arrays]:
        """`compute` of every block of `size` of `count` items, in order and on every process.

        Process r computes the blocks r, r + self.size, ... whole, so arrays are the same for any
        number of processes as long as `compute` depends on the items alone. Items count as done
        when the next block is asked for.
        """
        starts, done = range(0, count, size), 0
        for first in range(0, len(starts), self.size):
            own = starts[first : first + self.size][self.rank :]
            block = range(own[0], min(own[0] + size, count)) if own else None
            gathered = self.all_gather(None if block is None else compute(block))
            for arrays in gathered:
                if arrays is None:
                    continue
                yield arrays
                done = min(done + size, count)
                if progress is not None:
                    progress(done, count)

    def concatenate_blocks(
        self, compute: Callable[[range], Arrays], count: int, size: int
    ) -> dict[str, Tensor]:
        """The arrays of `map_blocks`, of all items."""
        blocks = list(self.map_blocks(compute, count, size))
        return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
