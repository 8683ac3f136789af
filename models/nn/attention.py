"""Dense self-attention with one fused projection, and the cache of its keys and values."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHORT = 256
"""Up to this many places plain products are faster on a CPU."""


class Cache:
    """Keys and values of one attention layer, filled from the left."""

    def __init__(self, batch: int, heads: int, length: int, head_width: int) -> None:
        self._shape = (2, batch, heads, length, head_width)
        self._store: Tensor | None = None
        self.filled = 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the (B, H, n, C) of n new places; returns those of all places so far."""
        if self._store is None:
            # the first keys say in which precision and where (autocast decides late)
            self._store = key.new_empty(self._shape)
        first, self.filled = self.filled, self.filled + key.shape[2]
        self._store[0, :, :, first : self.filled] = key
        self._store[1, :, :, first : self.filled] = value
        return self._store[0, :, :, : self.filled], self._store[1, :, :, : self.filled]


class SelfAttention(nn.Module):
    """Multi-head self-attention, softmax(q k / sqrt(head width)) v (arXiv 1706.03762, eq. 1)."""

    def __init__(self, width: int, heads: int, head_width: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.head_width, self.causal = heads, head_width, causal
        self.qkv = nn.Linear(width, 3 * heads * head_width)
        self.out = nn.Linear(heads * head_width, width)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, L, width) to (B, L, width).

        With a cache, `x` holds the places that follow the cached ones: any number of them into an
        empty cache, one at a time afterwards.
        """
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, self.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        causal = self.causal and length > 1
        if cache is not None:
            if causal and cache.filled:
                raise ValueError("a filled cache takes one place at a time")
            key, value = cache.append(key, value)
        mixed = attend(query, key, value, causal=causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


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


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """softmax(q k / sqrt(C)) v of (B, H, L, C), by the faster way for the place and the length.

    On a CPU torch's fused kernel is slower than plain products for short sequences (2.6 times at
    28 places and 5 times at 77, forward and backward in bf16).
    """
    if query.device.type != "cpu" or key.shape[2] > SHORT:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(dim=-1).to(value.dtype) @ value
