"""Activation checkpointing: blocks are recomputed in the backward pass.

Only the activations between blocks are kept, for one more forward pass (Chen et al., arXiv
1604.06174).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.blocks import blocks_of


def enable_activation_checkpointing(module: nn.Module) -> int:
    """Checkpoint every block inside `module` from now on; returns their number.

    Outputs and gradients stay the same, dropout included. Without gradients nothing changes.
    """
    blocks = blocks_of(module)
    for block in blocks:
        block.forward = _checkpointed(block.forward)
    return len(blocks)


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, *others: object) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x, *others)
        return checkpoint(forward, x, *others, use_reentrant=False)

    return call
