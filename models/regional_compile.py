"""Regional compilation: every repeated block through torch.compile, the rest as it is.

Blocks of one shape share one compiled graph, so compile time does not grow with depth.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.blocks import blocks_of

SHAPES = 64
"""Graphs per class of block, of which a U-Net has one for each width and resolution.

Beyond its default of 8 torch runs blocks uncompiled.
"""


def compile_blocks(module: nn.Module) -> int:
    """Compile the forward of every block inside `module` at its first call; returns how many.

    Outputs and gradients agree up to rounding; dropout samples other numbers. Shapes are static: a
    new batch size compiles again. Without gradients, as in previews, blocks run uncompiled.
    """
    blocks = blocks_of(module)
    torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
    for block in blocks:
        block.forward = _compiled(block.forward)
    return len(blocks)


def _compiled(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    compiled = torch.compile(forward, dynamic=False)

    def call(x: Tensor, *others: object) -> Tensor:
        return compiled(x, *others) if torch.is_grad_enabled() else forward(x, *others)

    return call
