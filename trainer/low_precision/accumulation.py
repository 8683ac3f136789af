"""Sums of 16-bit gradients over the micro-batches of an update, in fp32.

A sum in bf16 stops growing at 256 equal gradients: what is added is less than half a step of it.
DeepSpeed 0.19 sums in fp32 where it shards gradients (ZeRO 2 and 3, `data_types` in its JSON); at 0
and 1 it does not, so the sums are kept here.
"""

import torch
from torch import Tensor, nn


class Fp32Accumulation:
    """fp32 sums of a module's gradients; between micro-batches the weights hold none."""

    def __init__(self, module: nn.Module) -> None:
        self._sums: dict[nn.Parameter, Tensor] = {}
        for weight in module.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(self._add)  # type: ignore[no-untyped-call]

    def _add(self, weight: nn.Parameter) -> None:
        assert weight.grad is not None
        if weight in self._sums:
            self._sums[weight].add_(weight.grad)
        else:
            self._sums[weight] = weight.grad.float()
        weight.grad = None

    def finish(self) -> None:
        """Give each weight the gradient of the whole update, rounded once."""
        while self._sums:
            weight, total = self._sums.popitem()
            weight.grad = total.to(weight.dtype)


def accumulates_here(zero: int, dtype: torch.dtype, micro_batches: int) -> bool:
    """Whether gradients must be summed here rather than by DeepSpeed."""
    return zero < 2 and dtype != torch.float32 and micro_batches > 1
