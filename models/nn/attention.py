"""Self-attention with one fused projection, and the cache of its keys and values."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.conditioning_cache import once
from models.nn.cpu.bf16_kernels import MATRIX_UNITS, Avx512Attention, has_attention
from models.nn.linear import FastLinear, as_type

SHORT = 256
"""Up to this many places plain products are faster on a CPU."""


class Memory(Protocol):
    """Keys and values that one attention layer reads again."""

    filled: int
    """Places taken so far."""

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Take the (B, H, n, C) of the first places into the empty memory."""
        ...

    def attend(self, qkv: Tensor) -> Tensor:
        """Take one more place, query, key and value (B, 3, H, 1, C) in any precision.

        Returns what it reads, (B, H, 1, C).
        """
        ...


class AttentionPattern(Protocol):
    """Which earlier places a layer reads, and how its attention is computed."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(q k / sqrt(C)) v of (B, H, L, C) over the places that may be read."""
        ...

    def new_cache(self, batch: int, heads: int, head_width: int) -> Memory:
        """An empty cache of the places that are read again."""
        ...


class KVBuffer:
    """Keys and values of one attention layer, in slots of which a new place reads the first.

    A step of decoding costs mostly the number of its operators, so what a read can use again, views
    included, is kept.
    """

    def __init__(self, batch: int, heads: int, count: int, head_width: int) -> None:
        self._shape = (2, batch, heads, count, head_width)
        self._scale = head_width**-0.5
        self._store: Tensor | None = None

    def fill(self, slots: slice | Tensor, key: Tensor, value: Tensor) -> None:
        """Put the (B, H, n, C) of n places into the slots; the first say in which precision."""
        if self._store is None:
            # autocast decides late
            self._store = key.new_empty(self._shape)
            self._kernel = (
                Avx512Attention(self._store) if Avx512Attention.serves(self._store) else None
            )
            self.keys, self.values = self._store.unbind(0)
            self._turned_keys = self.keys.flatten(0, 1).transpose(1, 2)
            self._flat_values = self.values.flatten(0, 1)
            self._nothing = key.new_empty(1)
        self.keys[:, :, slots] = key
        self.values[:, :, slots] = value

    def attend(self, qkv: Tensor, slot: int, count: int) -> Tensor:
        """Put one place, query, key and value (B, 3, H, 1, C), into a slot, and read the first.

        Returns softmax(q k / sqrt(C)) v over `count` slots, (B, H, 1, C).
        """
        if self._kernel:
            return self._kernel(qkv, slot, count)
        self.put(slot, qkv.narrow(1, 1, 2))
        return self._read(qkv.select(1, 0), count)

    def put(self, slot: int, pair: Tensor) -> None:
        """Put the key and the value of one place, (B, 2, H, 1, C) in any precision, into a slot."""
        assert self._store is not None
        self._store.narrow(3, slot, 1).copy_(pair.transpose(0, 1))

    def _read(self, query: Tensor, count: int) -> Tensor:
        """softmax(q k / sqrt(C)) v of one query (B, H, 1, C) over the first slots: (B, H, 1, C).

        In the precision of the slots. In fp32 by products of three dimensions: `@` takes more
        calls, and on a CPU torch's fused kernel more time.
        """
        asked = as_type(query, self.keys.dtype)
        if asked.dtype != torch.float32:
            heard = self.keys.narrow(2, 0, count), self.values.narrow(2, 0, count)
            return F.scaled_dot_product_attention(asked, *heard)
        keys, values = self._turned_keys.narrow(2, 0, count), self._flat_values.narrow(1, 0, count)
        asked = asked.reshape(len(keys), 1, -1)
        scores = torch.baddbmm(self._nothing, asked, keys, beta=0, alpha=self._scale)
        return torch.bmm(scores.softmax(dim=-1), values).view(query.shape)


class Cache:
    """Keys and values of one attention layer that reads all earlier places."""

    def __init__(self, batch: int, heads: int, length: int, head_width: int) -> None:
        self._slots = KVBuffer(batch, heads, length, head_width)
        self.filled = 0

    def fill(self, key: Tensor, value: Tensor) -> None:
        """See `Memory`."""
        self.filled = key.shape[2]
        self._slots.fill(slice(0, self.filled), key, value)

    def attend(self, qkv: Tensor) -> Tensor:
        """See `Memory`."""
        self.filled += 1
        return self._slots.attend(qkv, self.filled - 1, self.filled)


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
        reach: AttentionPattern | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.causal, self.reach = heads, head_width, causal, reach
        self.qkv = FastLinear(width, 3 * heads * head_width)
        self.out = FastLinear(heads * head_width, width)

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
                # what is kept says the precision
                with torch.autocast(x.device.type, enabled=False):
                    mixed = cache.attend(qkv.permute(0, 2, 3, 1, 4))
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
        pairs = once(self, context, self.context)
        pairs = pairs.view(batch, -1, 2, self.heads, self.head_width)
        context_key, context_value = pairs.permute(2, 0, 3, 1, 4)
        key = torch.cat([key, context_key], dim=2)
        value = torch.cat([value, context_value], dim=2)
        mixed = attend(query, key, value, causal=False)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


def cached_dtype(states: Tensor) -> torch.dtype:
    """The precision in which keys and values of states (..., C) are kept.

    That of the network's products, but fp32 instead of bf16 on a CPU where one query's products
    with keys in bf16 take four times as long: one without matrix units (AMX), and without a kernel
    of our own.
    """
    if states.device.type != "cpu" or states.dtype != torch.bfloat16:
        return states.dtype
    fast = MATRIX_UNITS or has_attention(states.shape[-1])
    return states.dtype if fast else torch.float32


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
