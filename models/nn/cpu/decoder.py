"""Decoding one token at a time on a CPU, with as few operations as that takes.

A step has a row or two, so that calls of modules, casts and copies cost as much as the products.
Here the operations of the blocks follow one another, with all decided that can be beforehand.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.nn.attention import KVCache
from models.nn.cpu.bf16_kernels import Avx512Linear
from models.nn.cpu.linear import (
    PACKED_ROWS,
    LinearKernel,
    MkldnnLinear,
    PlainLinear,
    computes_in_bf16,
)
from models.nn.transformer import Block

MAX_PACKED_WEIGHTS = 2**30
"""The layers of a network with more weights are not packed: they would be held twice."""


class TokenDecoder:
    """The output of a transformer for one new token, whose cache holds those before it.

    Weights are read as they are when it is made; later changes do not reach it. The decision on
    their precision is that of autocast then.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        positions: Tensor,
        blocks: Sequence[Block],
        caches: Sequence[KVCache],
        norm: nn.LayerNorm,
        head: nn.Linear,
        *,
        rows: int,
    ) -> None:
        """For `rows` sequences; `positions` (N, width) are added to the embedded tokens."""
        self._embedding, self._positions = embedding.weight, positions.unbind(0)
        kernel = select_kernel(nn.ModuleList([*blocks, head]), head.weight, rows)
        self._layers = [
            DecoderLayer(block, cache, kernel) for block, cache in zip(blocks, caches, strict=True)
        ]
        self._norm, self._head = layer_norm(norm), kernel(head)
        # the layers have decided on their precision
        self._no_autocast = torch.autocast("cpu", enabled=False)

    def __call__(self, tokens: Tensor, position: int) -> Tensor:
        """Logits (B, V) of the token after `tokens` (B,), which stand at `position`."""
        with self._no_autocast:
            x = torch.embedding(self._embedding, tokens) + self._positions[position]
            for layer in self._layers:
                x = layer(x)
            return self._head(self._norm(x))


def has_no_hooks(network: nn.Module) -> bool:
    """Whether nothing was put around the modules, so that they need not be called as such.

    A training engine fetches weights in hooks, and may replace the forward of a layer.
    """
    return not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in network.modules()
    )


def select_kernel(
    network: nn.Module, weight: Tensor, rows: int
) -> Callable[[nn.Linear], LinearKernel]:
    """How the layers of a network are computed for so few rows; `weight` is that of one of them."""
    numel = sum(each.numel() for each in network.parameters())
    if numel > MAX_PACKED_WEIGHTS or not computes_in_bf16(weight):
        return PlainLinear
    packs = rows <= PACKED_ROWS and MkldnnLinear.is_supported(weight)

    def kernel(layer: nn.Linear) -> LinearKernel:
        if Avx512Linear.is_supported(layer.weight, rows):
            return Avx512Linear(layer)
        return MkldnnLinear(layer) if packs else PlainLinear(layer)

    return kernel


def layer_norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """A norm as one call."""
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


class DecoderLayer:
    """A block without dropout, with its weights as they are when it is made, and its cache."""

    def __init__(
        self, block: Block, cache: KVCache, kernel: Callable[[nn.Linear], LinearKernel]
    ) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        self._attention_norm = layer_norm(block.attention_norm)
        self._qkv, self._heads = kernel(attention.qkv), attention.heads
        self._cache = cache
        self._out = kernel(attention.out)
        self._forward_norm = layer_norm(block.forward_norm)
        self._hidden, self._gelu = kernel(feed_forward.hidden), feed_forward.gelu
        self._last = kernel(feed_forward.out)

    def __call__(self, x: Tensor) -> Tensor:
        """One position, (B, width) to (B, width)."""
        qkv = self._qkv(self._attention_norm(x)).view(len(x), 3, self._heads, 1, -1)
        mixed = self._cache.attend(qkv).reshape(len(x), -1)
        x = self._out.add(mixed, x)
        return self._last.add(self._hidden.gelu(self._forward_norm(x), self._gelu), x)
