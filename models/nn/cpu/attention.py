"""Attention by plain products, where it is faster on a CPU than torch's fused kernel."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.nn.cpu import is_enabled

SHORT = 256
"""Up to this many positions plain products are faster."""
SMALL_FP32 = 64 * 64
"""Up to this many scores they are in fp32, too."""
MOST_SCORES = 2304 * 2304
"""Of one head: up to this many, products of a few heads at a time are faster in bf16."""
SCORES_AT_A_TIME = 1 << 20
"""So many stay in a processor's cache between the products that make and read them."""


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


def heads_in_turn_are_faster(query: Tensor, key: Tensor) -> bool:
    """Whether `by_heads` beats torch's fused kernel: on a CPU in bf16, for 256 to 2,304 positions.

    Measured forward and backward on an AMD EPYC (Zen 5): 1.6 to 2.2 times as fast at 1,024
    positions (heads of 16 to 64), 1.4 times at 2,304, slower at 4,096.
    """
    few = query.shape[2] * key.shape[2] <= MOST_SCORES and query.shape[2] > 1
    bf16_on_cpu = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    return bf16_on_cpu and few and is_enabled("short_attention")


def by_heads(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k / sqrt(C)) v of (B, H, L, C), a few heads at a time.

    Keeps no scores for backward, which computes them again; they are rounded to the inputs'
    precision, as in `by_products`.
    """
    return _ByHeads.apply(query, key, value)  # type: ignore[no-untyped-call]


class _ByHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # noqa: ANN401
        scaled = (query * query.shape[-1] ** -0.5).flatten(0, 1)
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
        ctx.save_for_backward(scaled, keys, values)
        out = torch.empty_like(scaled)
        with torch.autocast("cpu", enabled=False):
            for part in _parts(scaled, keys):
                torch.bmm(_weights(scaled[part], keys[part]), values[part], out=out[part])
        return out.view(query.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        scaled, keys, values = ctx.saved_tensors
        grads = grad.flatten(0, 1).to(scaled.dtype)
        to_query, to_key, to_value = map(torch.empty_like, (scaled, keys, values))
        with torch.autocast("cpu", enabled=False):
            for part in _parts(scaled, keys):
                weights = _weights(scaled[part], keys[part])
                torch.bmm(weights.transpose(1, 2), grads[part], out=to_value[part])
                to_weights = grads[part] @ values[part].transpose(1, 2)
                to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
                torch.bmm(to_scores, keys[part], out=to_query[part])
                torch.bmm(to_scores.transpose(1, 2), scaled[part], out=to_key[part])
        to_query *= scaled.shape[-1] ** -0.5
        heads = grad.shape[:2]
        to_query, to_key, to_value = (
            each.view(*heads, *each.shape[1:]) for each in (to_query, to_key, to_value)
        )
        return to_query, to_key, to_value


def _parts(queries: Tensor, keys: Tensor) -> list[slice]:
    """The heads (first dimension) that are computed at the same time."""
    heads = max(1, SCORES_AT_A_TIME // (queries.shape[1] * keys.shape[1]))
    return [slice(start, start + heads) for start in range(0, len(queries), heads)]


def _weights(queries: Tensor, keys: Tensor) -> Tensor:
    return (queries @ keys.transpose(1, 2)).softmax(dim=-1)


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
