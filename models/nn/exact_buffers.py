"""Modules whose own buffers are never in 16 bits."""

from abc import ABC
from collections.abc import Callable

import torch
from torch import Tensor, nn


class ExactBuffers(nn.Module, ABC):
    """A module that moves with its network, but keeps its own buffers in fp32 or fp64.

    In 16 bits small changes of an average would be lost, and narrow intervals would become one.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:  # noqa: FBT001, FBT002 - torch's own signature
        exact = dict(self.named_buffers(recurse=False))
        moved: nn.Module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            now = getattr(self, name)
            if now.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, buffer.to(now.device))
        return moved
