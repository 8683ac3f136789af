"""One place at a time on a CPU, with as few operations as that takes.

A step has a row or two, so that calls of modules, casts and copies cost as much as the products.
Here the operations of `Prior.run` follow one another with all decided that can be beforehand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.autoregressive.prior import Prior
from models.nn.attention import Memory
from models.nn.cpu.bf16_kernels import Avx512Linear
from models.nn.linear import PACKED_ROWS, Gelu, MkldnnLinear, as_type, in_bf16, linear
from models.nn.transformer import Block

WEIGHTS_HELD_TWICE = 2**30
"""The layers of a network with more weights are not packed."""


class SingleSteps:
    """Logits of the next code from the places that are new since the last call."""

    def __init__(self, prior: Prior, text: Tensor) -> None:
        self._prior, self._text = prior, text
        self._layers: list[Layer] = []
        # the layers decide on their precision once
        self._as_decided = torch.autocast("cpu", enabled=False)

    def __call__(self, known: Tensor) -> Tensor:
        """Logits (B, V) of the code after the `known` (B, n); n grows by one a call."""
        if not self._layers:
            return self._read_first(known)
        newest = known.shape[1] - 1
        with self._as_decided:
            x = torch.embedding(self._codes, known.select(1, newest)) + self._places[newest]
            for layer in self._layers:
                x = layer.step(x)
            return self._head(self._norm(x))

    def _read_first(self, known: Tensor) -> Tensor:
        """Caption and first codes at once; then what later steps need."""
        prior = self._prior
        x = torch.cat([prior.embed_text(self._text), prior.embed_image(known, 0)], dim=1)
        memories = prior.new_caches(len(x))
        hidden = prior.run(x, memories)[:, -1]
        self._codes = prior.image_token.weight
        self._places = prior.image_place(0, prior.config.image_length).unbind(0)
        way = way_of(prior, len(x))
        self._norm, self._head = norm_of(prior.norm), way(prior.image_head)
        for block, memory in zip(prior.blocks, memories, strict=True):
            assert isinstance(block, Block)
            self._layers.append(Layer.of(block, memory, way))
        return prior.image_head(hidden)


def bare(prior: Prior) -> bool:
    """Whether nothing was put around the modules, so that they need not be called as such.

    A training engine fetches weights in hooks, and may give a layer another way to compute.
    """
    return not any(
        each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each)
        for each in prior.modules()
    )


class LinearKernel(Protocol):
    """A linear layer as one call, with its weights as they were when it was made."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in) to (B, out)."""
        ...

    def activated(self, x: Tensor, gelu: Gelu) -> Tensor:
        """GELU of the layer."""
        ...

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """The layer, added to (B, out)."""
        ...


class PlainLinear:
    """A layer with its weights as they lie, or cast once to where autocast computes products."""

    def __init__(self, layer: nn.Linear) -> None:
        dtype = torch.bfloat16 if in_bf16(layer.weight) else layer.weight.dtype
        self._weight, self._bias = layer.weight.to(dtype), layer.bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """See `LinearKernel`."""
        return linear(as_type(x, self._weight.dtype), self._weight, self._bias)

    def activated(self, x: Tensor, gelu: Gelu) -> Tensor:
        """See `LinearKernel`."""
        return F.gelu(self(x), approximate=gelu)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """See `LinearKernel`."""
        return to + self(x)


def way_of(prior: Prior, rows: int) -> Callable[[nn.Linear], LinearKernel]:
    """How the layers of the prior are computed for so few rows."""
    weights = sum(each.numel() for each in prior.parameters())
    if weights > WEIGHTS_HELD_TWICE or not in_bf16(prior.image_head.weight):
        return PlainLinear
    packs = rows <= PACKED_ROWS and MkldnnLinear.serves(prior.image_head.weight)

    def way(layer: nn.Linear) -> LinearKernel:
        if Avx512Linear.serves(layer.weight, rows):
            return Avx512Linear(layer)
        return MkldnnLinear(layer) if packs else PlainLinear(layer)

    return way


def norm_of(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """A norm as one call."""
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


@dataclass(frozen=True)
class Layer:
    """A block and the keys and values that it reads again."""

    attention_norm: Callable[[Tensor], Tensor]
    qkv: LinearKernel
    heads: int
    memory: Memory
    out: LinearKernel
    forward_norm: Callable[[Tensor], Tensor]
    hidden: LinearKernel
    gelu: Gelu
    last: LinearKernel

    @classmethod
    def of(cls, block: Block, memory: Memory, way: Callable[[nn.Linear], LinearKernel]) -> "Layer":
        """Of a block without dropout, with its weights as they are now."""
        attention, forward = block.attention, block.feed_forward
        return cls(
            attention_norm=norm_of(block.attention_norm),
            qkv=way(attention.qkv),
            heads=attention.heads,
            memory=memory,
            out=way(attention.out),
            forward_norm=norm_of(block.forward_norm),
            hidden=way(forward.hidden),
            gelu=forward.gelu,
            last=way(forward.out),
        )

    def step(self, x: Tensor) -> Tensor:
        """One place, (B, width) to (B, width)."""
        qkv = self.qkv(self.attention_norm(x)).view(len(x), 3, self.heads, 1, -1)
        mixed = self.memory.attend(qkv).reshape(len(x), -1)
        x = self.out.added(mixed, x)
        return self.last.added(self.hidden.activated(self.forward_norm(x), self.gelu), x)
