"""Causal transformers over a prefix that stays: what follows it, and captions without padding."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from models.nn.transformer import Block


class PrefixCache:
    """Keys and values of one layer for positions that stay, with space for `extra` that follow.

    A `KVCache` that a block fills. What follows is computed again each time, until it is kept.
    """

    def __init__(self, extra: int) -> None:
        self.filled = 0
        self._extra = extra

    def fill(self, key: Tensor, value: Tensor) -> None:
        self.filled = key.shape[2]
        shape = (*key.shape[:2], self.filled + self._extra, key.shape[3])
        self._keys, self._values = key.new_empty(shape), value.new_empty(shape)
        self._keys[:, :, : self.filled] = key
        self._values[:, :, : self.filled] = value

    @property
    def dtype(self) -> torch.dtype:
        """Precision of keys and values."""
        return self._keys.dtype

    def attend(self, qkv: Tensor) -> Tensor:
        raise ValueError("positions after a prefix are computed by `follow`")

    def attend_after(self, qkv: Tensor, mask: Tensor, count: int) -> Tensor:
        """Attention of the last `count` of n positions after those that are kept.

        Takes queries, keys and values (3, B, H, n, C), and 0 or -inf for every pair of positions,
        (B or 1, 1, n, kept + n). Returns (B, H, count, C).
        """
        query, key, value = qkv.to(self._keys.dtype)
        last = self.filled + key.shape[2]
        self._keys[:, :, self.filled : last] = key
        self._values[:, :, self.filled : last] = value
        return F.scaled_dot_product_attention(
            query[:, :, -count:],
            self._keys[:, :, :last],
            self._values[:, :, :last],
            attn_mask=mask[:, :, -count:],
        )

    def keep(self, count: int) -> None:
        """Keep the first `count` of the positions that followed."""
        self.filled += count


def follow(block: Block, x: Tensor, cache: PrefixCache, mask: Tensor, count: int) -> Tensor:
    """A block's output at the last `count` of the positions (B, n, width) after a prefix."""
    batch, length, _ = x.shape
    attention = block.attention
    qkv = attention.qkv(block.attention_norm(x))
    qkv = qkv.view(batch, length, 3, attention.heads, attention.head_width)
    mixed = cache.attend_after(qkv.permute(2, 0, 3, 1, 4), mask, count).to(qkv.dtype)
    x = x[:, -count:] + attention.out(mixed.transpose(1, 2).reshape(batch, count, -1))
    return x + block.feed_forward(block.forward_norm(x))


def read_one(block: Block, x: Tensor, place: Tensor | None) -> Tensor:
    """A causal block's output (B, width) at one position of each row of (B, L, width).

    `place` (B,) says which; None: the last. What only other positions need is not computed.
    """
    batch, length, _ = x.shape
    attention = block.attention
    qkv = attention.qkv(block.attention_norm(x))
    qkv = qkv.view(batch, length, 3, attention.heads, attention.head_width)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    mask = None
    if place is None:
        query, x = query[:, :, -1:], x[:, -1]
    else:
        rows = torch.arange(batch, device=x.device)
        query, x = query[rows, :, place][:, :, None], x[rows, place]
        seen = torch.arange(length, device=x.device) <= place[:, None]
        mask = seen[:, None, None]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    x = x + block.dropout(attention.out(mixed.reshape(batch, -1)))
    return x + block.dropout(block.feed_forward(block.forward_norm(x)))


class Packing:
    """Rows (B, L) without the positions that a mask leaves out, up to the longest one.

    A position that may not be read is put after all others, where nothing of a causal transformer
    reads it: attention then needs no mask, and most padding is not computed at all.
    """

    def __init__(self, mask: Tensor) -> None:
        """`mask` (B, L) bool: the positions that are read."""
        self.count = mask.sum(dim=1)
        """(B,): positions of each row."""
        self.longest = int(self.count.max())
        order = mask.logical_not().long().argsort(dim=1, stable=True)
        self.order = order[:, : self.longest]
        """(B, longest): those that are read, in their order, and then others."""
        self._rows = len(mask)

    @classmethod
    def of(cls, mask: Tensor | None) -> Self | None:
        """None where every position is read."""
        if mask is None or bool(mask.all()):
            return None
        return cls(mask)

    def take(self, values: Tensor) -> Tensor:
        """(B, L, C) to (B, longest, C)."""
        length = values.shape[1]
        first = torch.arange(self._rows, device=values.device)[:, None] * length
        return (
            values.flatten(0, 1)
            .index_select(0, (self.order + first).flatten())
            .view(self._rows, self.longest, -1)
        )

    def join(self, tokens: Tensor, tail: Tensor) -> Tensor:
        """Tokens (B, longest, C) with a tail (B, n, C) after those of each row that are read."""
        joined, n = torch.cat([tokens, tail], dim=1), tail.shape[1]
        length = self.longest + n
        place = torch.arange(length, device=tokens.device)
        count = self.count[:, None]
        moved = torch.where(place < count + n, place - count + self.longest, place - n)
        index = torch.where(place < count, place, moved)
        first = torch.arange(self._rows, device=tokens.device)[:, None] * length
        return joined.flatten(0, 1).index_select(0, (index + first).flatten()).view_as(joined)

    def after(self, sequence: Tensor, first: int, count: int) -> Tensor:
        """`count` positions (B, count, C) of a joined sequence, from that of the tail on."""
        rows, length, _ = sequence.shape
        place = self.count[:, None] + torch.arange(first, first + count, device=sequence.device)
        start = torch.arange(rows, device=sequence.device)[:, None] * length
        return (
            sequence.flatten(0, 1).index_select(0, (place + start).flatten()).view(rows, count, -1)
        )
