"""Activation checkpointing: blocks forget what they compute, and compute it again in backward.

Memory for activations falls to what passes between blocks, for one more forward (Chen et al.,
arXiv 1604.06174).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.autoencoders import resnet
from models.autoencoders.pyramid import Residual
from models.autoencoders.strided import ThinResidual
from models.diffusion.unet.blocks import AttentionBlock, ResidualBlock
from models.diffusion.unet.spatial import SpatialTransformer
from models.nn.convolution import FiLMResBlock
from models.nn.transformer import Block, DiTBlock

BLOCKS = (
    *(Block, DiTBlock, FiLMResBlock, Residual, ResidualBlock, AttentionBlock),
    *(SpatialTransformer, resnet.ResidualBlock, resnet.SpatialAttention, ThinResidual),
)
"""What is computed again as a whole."""


def enable_activation_checkpointing(module: nn.Module) -> int:
    """Let every block inside `module` do so from now on; returns how many there are.

    Outputs and gradients stay the same, dropout included. Without gradients nothing changes.
    """
    blocks = [block for block in module.modules() if isinstance(block, BLOCKS)]
    for block in blocks:
        block.forward = _recomputed(block.forward)  # type: ignore[method-assign]
    return len(blocks)


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(x: Tensor, *others: object) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x, *others)
        return checkpoint(forward, x, *others, use_reentrant=False)

    return call
