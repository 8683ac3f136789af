"""Activation checkpointing: blocks forget what they compute, and compute it again in backward.

Memory for activations falls to what passes between blocks, for one more forward (Chen et al.,
arXiv 1604.06174).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.blocks import blocks_of


def enable_activation_checkpointing(module: nn.Module) -> int:
    """Let every block inside `module` do so from now on; returns how many there are.

    Outputs and gradients stay the same, dropout included. Without gradients nothing changes.
    """
    blocks = blocks_of(module)
    for block in blocks:
        block.forward = _recomputed(block.forward)
    return len(blocks)


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, *others: object) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x, *others)
        return checkpoint(forward, x, *others, use_reentrant=False)

    return call
