"""Attention by plain products, faster on a CPU than torch's fused kernel for few positions."""

import torch
from torch import Tensor

from models.nn.cpu import is_enabled

SHORT = 256
"""Up to this many positions plain products are faster."""
SMALL_FP32 = 64 * 64
"""Up to this many scores they are in fp32, too."""


def products_are_faster(query: Tensor, key: Tensor) -> bool:
    """Whether `by_products` beats torch's fused kernel: on a CPU, for few keys or a single query.

    Measured forward and backward in bf16: 2.6 times as fast at 28 positions, 5 times at 77. In
    fp32 of more than 64 x 64 scores the fused one is at least as fast, and keeps no scores.
    """
    few = key.shape[2] <= SHORT or query.shape[2] == 1
    if query.dtype == torch.float32 and query.shape[2] > 1:
        few = few and query.shape[2] * key.shape[2] <= SMALL_FP32
    return query.device.type == "cpu" and few and is_enabled("short_attention")


def by_products(query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    """softmax(q k / sqrt(C)) v of (B, H, L, C)."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(dim=-1).to(value.dtype) @ value


class Fp32CachedAttention:
    """Attention of one query to cached keys and values in fp32, by products of three dimensions.

    `@` takes more calls, and torch's fused kernel more time. Views of the cache are kept.
    """

    def __init__(self, store: Tensor) -> None:
        self._store = store
        keys, values = store.flatten(1, 2)
        self._keys, self._values = keys.transpose(1, 2), values
        self._scale = store.shape[-1] ** -0.5
        self._unused = store.new_empty(1)

    def __call__(self, qkv: Tensor, slot: int, count: int) -> Tensor:
        self._store.narrow(3, slot, 1).copy_(qkv.narrow(1, 1, 2).transpose(0, 1))
        query = qkv.select(1, 0)
        if query.dtype != torch.float32:
            query = query.float()
        keys, values = self._keys.narrow(2, 0, count), self._values.narrow(1, 0, count)
        rows = query.reshape(len(keys), 1, -1)
        scores = torch.baddbmm(self._unused, rows, keys, beta=0, alpha=self._scale)
        return torch.bmm(scores.softmax(dim=-1), values).view(query.shape)

    @staticmethod
    def is_supported(store: Tensor) -> bool:
        """Whether the cache is in fp32 and on a CPU."""
        on_cpu = store.device.type == "cpu" and store.dtype == torch.float32
        return on_cpu and is_enabled("decode_attention")
