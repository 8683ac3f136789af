"""What stays in 32 bits under 16-bit training (arXiv 2102.12092, D).

Norm scales, biases, embeddings and output projections keep fp32 gradients and moments, and logits
are computed in fp32. The rest, the matrices of residual blocks, is nearly all of a large network.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.blocks import blocks_of


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices inside a network's residual blocks; all others stay in fp32.

    Of a network without blocks: those anywhere but in embeddings.
    """
    roots = blocks_of(module) or [module]
    owners = [inner for root in roots for inner in root.modules()]
    found = {
        weight: None
        for owner in owners
        if not isinstance(owner, nn.Embedding)
        for weight in owner.parameters(recurse=False)
        if weight.requires_grad and _dimensions(weight) >= 2
    }
    return list(found)


def _dimensions(weight: nn.Parameter) -> int:
    """Of the whole weight, which ZeRO-3 may have taken away."""
    return len(getattr(weight, "ds_shape", weight.shape))


def unembeddings(module: nn.Module) -> list[nn.Linear]:
    """Linear layers outside the residual blocks: a transformer's heads."""
    inside = {id(inner) for block in blocks_of(module) for inner in block.modules()}
    return [
        each for each in module.modules() if isinstance(each, nn.Linear) and id(each) not in inside
    ]


def compute_logits_in_fp32(module: nn.Module) -> None:
    """Compute a network's unembeddings in fp32 also where autocast would not."""
    for head in unembeddings(module):
        head.forward = _without_autocast(head.forward)  # type: ignore[method-assign, assignment]


def _without_autocast(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A linear layer's forward in fp32, whatever autocast says."""

    def call(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return call
