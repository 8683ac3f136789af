"""Network outputs in fixed blocks, which several processes share."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from mezzotint.inference.runtime import Runtime

Items = TypeVar("Items", Tensor, Sequence[str])


def in_blocks(
    function: Callable[[Items], Tensor],
    items: Items,
    runtime: Runtime,
    *,
    size: int,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """`function` of every `size` items, concatenated on the CPU.

    The blocks depend on `size` alone and each is computed by one process, so the result is the same
    for any number of processes.
    """

    def compute(block: range) -> Mapping[str, Tensor]:
        values = function(items[block.start : block.stop]).cpu()
        if progress is not None:
            progress(block.stop, len(items))
        return {"values": values}

    with runtime.inference():
        return runtime.group.concatenate_blocks(compute, len(items), size)["values"]
