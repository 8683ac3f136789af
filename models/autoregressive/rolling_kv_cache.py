"""Key-value cache of a sparse layer: only what later positions attend to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.autoregressive.patterns import Pattern
from models.nn.attention import KVBuffer


class RollingKVCache:
    """The caption's keys and values, then a ring buffer of those of the newest image positions.

    Image position p lies in slot p mod `size`. A row layer of the paper's shape keeps 33 of 1,024.
    """

    def __init__(
        self, pattern: Pattern, prefix: int, positions: int, batch: int, heads: int, head_width: int
    ) -> None:
        self.pattern, self.prefix = pattern, prefix
        self.size = pattern.cache_size(positions)
        self._slots = KVBuffer(batch, heads, prefix + self.size, head_width)
        self.filled = 0

    def fill(self, key: Tensor, value: Tensor) -> None:
        """Put the (B, H, n, C) of caption and first image positions into the empty cache."""
        count = key.shape[2] - self.prefix
        newest = torch.arange(max(0, count - self.size), count, device=key.device)
        caption = torch.arange(self.prefix, device=key.device)
        slots = torch.cat([caption, self.prefix + newest % self.size])
        read = torch.cat([caption, self.prefix + newest])
        self._slots.fill(slots, key[:, :, read], value[:, :, read])
        self.filled = key.shape[2]

    def attend(self, qkv: Tensor) -> Tensor:
        """Add one image position (B, 3, H, 1, C); returns its attention output (B, H, 1, C)."""
        position = self.filled - self.prefix
        slot = self.prefix + position % self.size
        self.filled += 1
        reads = self.pattern.ring_slots(position)
        if isinstance(reads, slice) and reads.step is None:
            return self._slots.attend(qkv, slot, self.prefix + reads.stop)
        self._slots.put(slot, qkv.narrow(1, 1, 2))
        keys, values = self._slots.keys, self._slots.values
        query = qkv.select(1, 0)
        scaled = query.to(keys.dtype) * query.shape[-1] ** -0.5
        return self._attend_separately(scaled, keys, values, reads)

    def _attend_separately(
        self, query: Tensor, keys: Tensor, values: Tensor, reads: slice | Sequence[int]
    ) -> Tensor:
        """Caption and image separately, so that only what is read of the image is copied."""
        first = self.prefix
        near_keys = _select(keys[:, :, first:], reads)
        near_values = _select(values[:, :, first:], reads)
        scores = torch.cat(
            [
                query @ keys[:, :, :first].transpose(-1, -2),
                query @ near_keys.transpose(-1, -2),
            ],
            dim=-1,
        )
        weights = scores.softmax(dim=-1).to(values.dtype)
        return weights[..., :first] @ values[:, :, :first] + weights[..., first:] @ near_values


def _select(store: Tensor, reads: slice | Sequence[int]) -> Tensor:
    if isinstance(reads, slice):
        return store[:, :, reads]
    return store.index_select(2, torch.tensor(reads, device=store.device))
