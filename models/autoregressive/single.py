"""One place at a time on a CPU, with as few operations as that takes.

A step has a row or two, so that calls of modules, casts and copies cost as much as the products.
Here the operations of `Prior.run` follow one another with all decided that can be beforehand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.autoregressive.prior import Prior
from models.nn.attention import Memory
from models.nn.linear import Gelu, GeluLinear, Projection, linear
from models.nn.transformer import Block

Rows = Callable[[Tensor], Tensor]
"""Of vectors (B, in), vectors (B, out)."""


class SingleSteps:
    """Logits of the next code from the places that are new since the last call."""

    def __init__(self, prior: Prior, text: Tensor) -> None:
        self._prior, self._text = prior, text
        self._layers: list[Layer] = []

    def __call__(self, known: Tensor) -> Tensor:
        """Logits (B, V) in fp32 of the code after the `known` (B, n); n grows by one a call."""
        if not self._layers:
            return self._read_first(known)
        newest = known.shape[1] - 1
        x = F.embedding(known[:, newest], self._codes) + self._places[newest]
        for layer in self._layers:
            x = layer.step(x)
        return self._head(self._norm(x)).float()

    def _read_first(self, known: Tensor) -> Tensor:
        """Caption and first codes at once; then what later steps need."""
        prior = self._prior
        x = torch.cat([prior.embed_text(self._text), prior.embed_image(known, 0)], dim=1)
        memories = prior.new_caches(len(x))
        hidden = prior.run(x, memories)[:, -1]
        self._codes = prior.image_token.weight
        self._places = prior.image_place(0, prior.config.image_length)
        self._norm, self._head = norm_of(prior.norm), rows_of(prior.image_head)
        for block, memory in zip(prior.blocks, memories, strict=True):
            assert isinstance(block, Block)
            self._layers.append(Layer.of(block, memory))
        return self._head(hidden).float()


def bare(prior: Prior) -> bool:
    """Whether nothing was put around the modules, so that they need not be called as such.

    A training engine fetches weights in hooks, and may give a layer another way to compute.
    """
    return not any(
        each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each)
        for each in prior.modules()
    )


@dataclass(frozen=True)
class Layer:
    """A block and the keys and values that it reads again."""

    attention_norm: Rows
    qkv: Rows
    heads: int
    memory: Memory
    out: Rows
    forward_norm: Rows
    hidden: Rows
    gelu: Gelu
    last: Rows

    @classmethod
    def of(cls, block: Block, memory: Memory) -> "Layer":
        """Of a block without dropout, with its weights as they are now."""
        attention, forward = block.attention, block.feed_forward
        return cls(
            attention_norm=norm_of(block.attention_norm),
            qkv=rows_of(attention.qkv),
            heads=attention.heads,
            memory=memory,
            out=rows_of(attention.out),
            forward_norm=norm_of(block.forward_norm),
            hidden=rows_of(forward.hidden),
            gelu=forward.gelu,
            last=rows_of(forward.out),
        )

    def step(self, x: Tensor) -> Tensor:
        """One place, (B, width) to (B, width)."""
        qkv = self.qkv(self.attention_norm(x))
        query, key, value = qkv.view(len(x), 3, self.heads, 1, -1).unbind(1)
        mixed = self.memory.attend(query, key, value)
        x = x + self.out(mixed.reshape(len(x), -1).to(qkv.dtype))
        return x + self.last(F.gelu(self.hidden(self.forward_norm(x)), approximate=self.gelu))


def norm_of(norm: nn.LayerNorm) -> Rows:
    """A norm as one call."""
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def rows_of(layer: Projection | GeluLinear) -> Rows:
    """A linear layer as one call, with the weights that `packed` has left."""
    bias = layer.bias if layer.packed is None else layer.bias.to(torch.bfloat16)
    return partial(linear, weight=layer.weight, bias=bias, packed_weight=layer.packed)
