"""Gumbel-softmax over a large vocabulary, in chunks that stay in the processor's cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from models.nn.random import gumbel_like

SMALL = 2**20
"""Up to so many logits fit in a cache: plain expressions are as fast."""
CHUNK_CPU, CHUNK_GPU = 2**18, 2**26
"""Logits processed at a time."""


def gumbel_softmax(
    logits: Tensor, temperature: float, rng: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """softmax((logits + gumbel) / temperature), sum_k q_k ln q_k, and argmax of (B, K, h, w).

    q is the softmax of the logits themselves. The three are (B, K, h, w), (B, h, w) and (B, h, w)
    int64. Unlike plain expressions over dimension 1, the K logits of a position are contiguous, all
    operations on a chunk run while it is in the cache, and only the logits, the sample and two
    numbers per position are saved for the backward pass.
    """
    batch, vocab, *grid = logits.shape
    flat = logits.movedim(1, -1).reshape(-1, vocab)
    value, negative_entropy, codes = _GumbelSoftmax.apply(flat, temperature, rng)  # type: ignore[no-untyped-call]
    return (
        value.view(batch, *grid, vocab).movedim(-1, 1),
        negative_entropy.view(batch, *grid),
        codes.view(batch, *grid),
    )


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each, the first being the logits."""
    first = tensors[0]
    chunk = CHUNK_CPU if first.device.type == "cpu" else CHUNK_GPU
    rows = max(chunk // first.shape[1], 1)
    return zip(*(torch.split(each, rows) for each in tensors), strict=True)


class _GumbelSoftmax(torch.autograd.Function):
    """Of (N, K) in fp32."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own
        logits: Tensor,
        temperature: float,
        rng: Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample (N, K), negative entropy (N,), most probable (N,)."""
        value = torch.empty_like(logits)
        log_sum = logits.new_empty(len(logits), 1)
        negative_entropy = logits.new_empty(len(logits), 1)
        codes = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        for x, y, total, inner, best in _chunks(logits, value, log_sum, negative_entropy, codes):
            top = torch.max(x, dim=1, keepdim=True)
            best.copy_(top.indices[:, 0])
            shifted = x - top.values
            weight = shifted.exp()
            share = weight.sum(dim=1, keepdim=True)
            log_share = share.log()
            torch.add(top.values, log_share, out=total)
            # sum q ln q, with ln q = shifted - ln share
            dot = torch.linalg.vecdot(weight, shifted)[:, None]
            torch.sub(dot / share, log_share, out=inner)
            noisy = gumbel_like(x, rng).add_(x).div_(temperature)
            torch.softmax(noisy, dim=1, out=y)
        ctx.save_for_backward(logits, value, log_sum, negative_entropy)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(codes)
        return value, negative_entropy[:, 0], codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        """d y_j / d x_k = y_j (1_jk - y_k) / temperature; d H / d x_k = q_k (ln q_k - H)."""
        of_value, of_entropy, _ = gradients
        logits, value, log_sum, negative_entropy = ctx.saved_tensors
        result = torch.empty_like(logits)
        of_entropy = of_entropy[:, None]
        for x, y, total, inner, upper, side, out in _chunks(
            logits, value, log_sum, negative_entropy, of_value, of_entropy, result
        ):
            torch.sub(x, total, out=out)
            weight = out.exp()
            out.sub_(inner).mul_(weight).mul_(side)
            dot = torch.linalg.vecdot(upper, y)[:, None]
            out.addcmul_(upper - dot, y, value=1 / ctx.temperature)
        return result, None, None
