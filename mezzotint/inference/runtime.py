"""Where and how networks compute in inference: device, precision, processes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from mezzotint.inference.process_group import ProcessGroup
from models.finite import named_samples, require_finite

Precision = Literal["auto", "fp32", "bf16"]
"""`auto` is bf16 autocast where the device multiplies bf16 matrices, else fp32."""
Items = TypeVar("Items", Tensor, Sequence[str])


@dataclass(frozen=True)
class Runtime:
    """Device, autocast policy and process group of a generator or an encoder."""

    device: torch.device
    bf16: bool
    group: ProcessGroup

    @classmethod
    def of(
        cls,
        device: str | torch.device = "cpu",
        precision: Precision = "auto",
        group: ProcessGroup | None = None,
    ) -> "Runtime":
        """The runtime on a device; one process where no group is given."""
        chosen = torch.device(device)
        return cls(chosen, computes_in_bf16(precision, chosen), group or ProcessGroup())

    @property
    def precision_name(self) -> str:
        """How a protocol records it."""
        return "bf16 autocast" if self.bf16 else "fp32"

    def autocast(self) -> torch.autocast:
        """Matrix products and convolutions in bf16, if that is the precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, autocast, and on a CPU one thread.

        More threads add up in another order: with one, results do not depend on how many cores
        there are and how many processes share them.
        """
        threads = torch.get_num_threads()
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        try:
            with torch.no_grad(), self.autocast():
                yield
        finally:
            torch.set_num_threads(threads)

    def in_blocks(
        self,
        function: Callable[[Items], Tensor],
        items: Items,
        *,
        size: int,
        item_name: str = "image",
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """`function` of every `size` items, concatenated on the CPU.

        The blocks depend on `size` alone and each is computed by one process, so the result is the
        same for any number of processes.

        Raises:
            NonFiniteError: values are not finite, with the number of the item.
        """

        def compute(block: range) -> Mapping[str, Tensor]:
            with named_samples([f"{item_name} {index}" for index in block]):
                values = function(items[block.start : block.stop]).cpu()
                require_finite("what was computed of it is", values)
            if progress is not None:
                progress(block.stop, len(items))
            return {"values": values}

        with self.inference():
            return self.group.concatenate_blocks(compute, len(items), size)["values"]


def code_precision(precision: Precision) -> Precision:
    """The precision of a system that samples codes: fp32 unless another one is asked for.

    In bf16 the rounding of a logit depends on how many sequences are computed together, and one
    other code makes another image: of the quickstart's, 22 of 40 changed with their neighbours.
    """
    return "fp32" if precision == "auto" else precision


def computes_in_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether matrix products run in bf16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
