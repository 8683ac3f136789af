"""Self-attention with one fused projection, and the cache of its keys and values."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.conditioning_cache import cached
from models.nn.cpu.dispatch import attention, cached_attention, kv_cache_dtype


class KVCache(Protocol):
    """Keys and values of one attention layer."""

    filled: int
    """Positions in the cache."""

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Put the (B, H, n, C) of the first positions into the empty cache."""

    def attend(self, qkv: Tensor) -> Tensor:
        """Add a position's query, key and value (B, 3, H, 1, C) in any precision.

        Returns its attention output (B, H, 1, C).
        """


class AttentionPattern(Protocol):
    """Sparse attention: which positions a layer attends to, and how it is computed."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(q k / sqrt(C)) v of (B, H, L, C) over the unmasked positions."""

    def new_cache(self, batch: int, heads: int, head_width: int) -> KVCache:
        """An empty cache of the positions that later ones attend to."""


class KVBuffer:
    """Keys and values of one attention layer in slots; a new position attends to the first ones."""

    def __init__(self, batch: int, heads: int, count: int, head_width: int) -> None:
        self._shape = (2, batch, heads, count, head_width)
        self._store: Tensor | None = None

    def fill(self, slots: slice | Tensor, key: Tensor, value: Tensor) -> None:
        """Put the (B, H, n, C) of n positions into the slots; the first set the precision."""
        if self._store is None:
            # autocast decides late
            self._store = key.new_empty(self._shape)
            self._kernel = cached_attention(self._store)
            self.keys, self.values = self._store.unbind(0)
        self.keys[:, :, slots] = key
        self.values[:, :, slots] = value

    def attend(self, qkv: Tensor, slot: int, count: int) -> Tensor:
        """Put one position, query, key and value (B, 3, H, 1, C), into a slot, and attend.

        Returns softmax(q k / sqrt(C)) v over `count` slots, (B, H, 1, C).
        """
        if self._kernel is not None:
            return self._kernel(qkv, slot, count)
        self.put(slot, qkv.narrow(1, 1, 2))
        keys, values = self.keys.narrow(2, 0, count), self.values.narrow(2, 0, count)
        return F.scaled_dot_product_attention(qkv.select(1, 0).to(keys.dtype), keys, values)

    def put(self, slot: int, pair: Tensor) -> None:
        """Put a position's key and value, (B, 2, H, 1, C) in any precision, into a slot."""
        assert self._store is not None
        self._store.narrow(3, slot, 1).copy_(pair.transpose(0, 1))


class FullKVCache:
    """Keys and values of all earlier positions."""

    def __init__(self, batch: int, heads: int, length: int, head_width: int) -> None:
        self._slots = KVBuffer(batch, heads, length, head_width)
        self.filled = 0

    def fill(self, key: Tensor, value: Tensor) -> None:
        self.filled = key.shape[2]
        self._slots.fill(slice(0, self.filled), key, value)

    def attend(self, qkv: Tensor) -> Tensor:
        self.filled += 1
        return self._slots.attend(qkv, self.filled - 1, self.filled)


class SelfAttention(nn.Module):
    """Multi-head self-attention, softmax(q k / sqrt(head width)) v (arXiv 1706.03762, eq. 1).

    Over all positions, only earlier ones if `causal`, or those of a sparse `pattern`. `bias`: of
    queries, keys and values; the output always has one.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        *,
        causal: bool,
        pattern: AttentionPattern | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.head_width, self.causal, self.pattern = heads, head_width, causal, pattern
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=bias)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, L, width) to (B, L, width).

        With a cache, `x` holds the positions that follow the cached ones: any number of them into
        an empty cache, one at a time afterwards.
        """
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is None:
            mixed = self._attend(query, key, value)
        else:
            if not cache.filled:
                kept = kv_cache_dtype(qkv)
                query, key, value = query.to(kept), key.to(kept), value.to(kept)
                cache.fill(key, value)
                mixed = self._attend(query, key, value)
            elif length > 1:
                raise ValueError("a filled cache takes one position at a time")
            else:
                # the cache sets the precision
                with torch.autocast(x.device.type, enabled=False):
                    mixed = cache.attend(qkv.permute(0, 2, 3, 1, 4))
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1).to(qkv.dtype))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.pattern is None:
            return attention(query, key, value, causal=self.causal and query.shape[2] > 1)
        return self.pattern.attend(query, key, value)


class ContextAttention(nn.Module):
    """Self-attention over the positions and a context, whose keys and values are concatenated.

    As in GLIDE (arXiv 2112.10741, 2.1). A context position costs two
    projections a layer instead of a whole block. Its positions are `context` wide, by default as
    wide as its own.
    """

    def __init__(
        self, width: int, heads: int, head_width: int, *, context: int | None = None
    ) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.context = nn.Linear(context or width, 2 * heads * head_width)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, L, width) with a context (B, M, context) to (B, L, width).

        `mask` (B, M) bool says which positions of the context count; None: all.
        """
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        pairs = cached(self, context, self.context)
        pairs = pairs.view(batch, -1, 2, self.heads, self.head_width)
        context_key, context_value = pairs.permute(2, 0, 3, 1, 4)
        key = torch.cat([key, context_key], dim=2)
        value = torch.cat([value, context_value], dim=2)
        if mask is not None:
            mask = torch.cat([mask.new_ones(batch, length), mask], dim=1)
        mixed = attention(query, key, value, causal=False, mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
