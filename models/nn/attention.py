"""Self-attention with one fused projection, and the cache of its keys and values."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.linear import Projection

SHORT = 256
"""Up to this many places plain products are faster on a CPU."""


class Memory(Protocol):
    """Keys and values that one attention layer reads again."""

    filled: int
    """Places taken so far."""

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Take the (B, H, n, C) of the first places into the empty memory."""
        ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Take one more place, each (B, H, 1, C) in any precision, and return what it reads."""
        ...


class Reach(Protocol):
    """Which earlier places a layer reads, and how its attention is computed."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(q k / sqrt(C)) v of (B, H, L, C) over the places that may be read."""
        ...

    def new_cache(self, batch: int, heads: int, head_width: int) -> Memory:
        """An empty cache of the places that are read again."""
        ...


class Slots:
    """Keys and values of one attention layer, in slots of which a new place reads the first."""

    def __init__(self, batch: int, heads: int, count: int, head_width: int) -> None:
        self._shape = (batch, heads, count, head_width)
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def fill(self, slots: slice | Tensor, key: Tensor, value: Tensor) -> None:
        """Put the (B, H, n, C) of n places into the slots; the first say in which precision."""
        if self._keys is None or self._values is None:
            # autocast decides late
            self._keys, self._values = key.new_empty(self._shape), value.new_empty(self._shape)
        self._keys[:, :, slots] = key
        self._values[:, :, slots] = value

    def put(self, slot: int, key: Tensor, value: Tensor) -> None:
        """Put one place, (B, H, 1, C) in any precision, into a slot."""
        keys, values = self.pairs()
        keys.select(2, slot).copy_(key.select(2, 0))
        values.select(2, slot).copy_(value.select(2, 0))

    def pairs(self) -> tuple[Tensor, Tensor]:
        """All keys and values, (B, H, slots, C) each."""
        assert self._keys is not None
        assert self._values is not None
        return self._keys, self._values

    def read(self, query: Tensor, count: int) -> Tensor:
        """softmax(q k / sqrt(C)) v of one query (B, H, 1, C) over the first slots: (B, H, 1, C).

        In the precision of the slots, by products of three dimensions: `@` takes more calls.
        """
        keys, values = (each.flatten(0, 1).narrow(1, 0, count) for each in self.pairs())
        asked = query.to(keys.dtype).reshape(len(keys), 1, -1)
        scale = query.shape[-1] ** -0.5
        nothing = asked.new_empty(1)
        scores = torch.baddbmm(nothing, asked, keys.transpose(1, 2), beta=0, alpha=scale)
        return torch.bmm(scores.softmax(dim=-1).to(values.dtype), values).view(query.shape)


class Cache:
    """Keys and values of one attention layer that reads all earlier places."""

    def __init__(self, batch: int, heads: int, length: int, head_width: int) -> None:
        self._slots = Slots(batch, heads, length, head_width)
        self.filled = 0

    def fill(self, key: Tensor, value: Tensor) -> None:
        """See `Memory`."""
        self.filled = key.shape[2]
        self._slots.fill(slice(0, self.filled), key, value)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Memory`."""
        self._slots.put(self.filled, key, value)
        self.filled += 1
        return self._slots.read(query, self.filled)


class SelfAttention(nn.Module):
    """Multi-head self-attention, softmax(q k / sqrt(head width)) v (arXiv 1706.03762, eq. 1).

    It reads all places, only earlier ones if `causal`, or those of a sparse `reach`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        causal: bool,
        reach: Reach | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.causal, self.reach = heads, head_width, causal, reach
        self.qkv = Projection(width, 3 * heads * head_width)
        self.out = Projection(heads * head_width, width)

    def forward(self, x: Tensor, cache: Memory | None = None) -> Tensor:
        """(B, L, width) to (B, L, width).

        With a cache, `x` holds the places that follow the cached ones: any number of them into an
        empty cache, one at a time afterwards.
        """
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is None:
            mixed = self._attend(query, key, value)
        else:
            if not cache.filled:
                kept = cached_dtype(qkv)
                query, key, value = query.to(kept), key.to(kept), value.to(kept)
                cache.fill(key, value)
                mixed = self._attend(query, key, value)
            elif length > 1:
                raise ValueError("a filled cache takes one place at a time")
            else:
                mixed = cache.attend(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1).to(qkv.dtype))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.reach is None:
            return attend(query, key, value, causal=self.causal and query.shape[2] > 1)
        return self.reach.attend(query, key, value)


class ContextAttention(nn.Module):
    """Self-attention whose places also read a context: its keys and values join their own.

    GLIDE's way of reading captions (arXiv 2112.10741, 2.1). A context place costs two projections a
    layer instead of a whole block. Its places are `context` wide, by default as wide as its own.
    """

    def __init__(
        self, width: int, heads: int, head_width: int, *, context: int | None = None
    ) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.context = nn.Linear(context or width, 2 * heads * head_width)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, L, width) with a context (B, M, context) to (B, L, width)."""
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        pairs = self.context(context).view(batch, -1, 2, self.heads, self.head_width)
        context_key, context_value = pairs.permute(2, 0, 3, 1, 4)
        key = torch.cat([key, context_key], dim=2)
        value = torch.cat([value, context_value], dim=2)
        mixed = attend(query, key, value, causal=False)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


def cached_dtype(states: Tensor) -> torch.dtype:
    """The precision in which keys and values are kept.

    That of the network, but fp32 for a bf16 network on a CPU, where one query's products with keys
    in bf16 take four times as long. Under autocast, products are in its precision anyway.
    """
    if states.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return states.dtype
    return torch.promote_types(states.dtype, torch.float32)


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """softmax(q k / sqrt(C)) v of (B, H, L, C), by the faster way for the place and the length.

    On a CPU torch's fused kernel is slower than plain products for short sequences (2.6 times at
    28 places and 5 times at 77, forward and backward in bf16) and for a single query.
    """
    long = key.shape[2] > SHORT and query.shape[2] > 1
    if query.device.type != "cpu" or long:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(dim=-1).to(value.dtype) @ value
