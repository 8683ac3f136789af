"""Cross-entropy from the hidden states, without keeping the logits."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 2**20
"""Logits computed at a time."""
LARGE = 2**22
"""Fewer logits are kept."""


def chunked_cross_entropy(head: nn.Linear, hidden: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy in fp32 of targets (B, L) from (B, L, width) through the head."""
    if uses_chunks(head, hidden):
        flat = hidden.flatten(0, 1)
        return _ChunkedCrossEntropy.apply(flat, head.weight, head.bias, target.flatten())  # type: ignore[no-untyped-call]
    return F.cross_entropy(head(hidden).float().flatten(0, 1), target.flatten())


def uses_chunks(head: nn.Linear, hidden: Tensor) -> bool:
    """Whether it pays to keep the head's gradient instead of the logits and theirs.

    Not with few positions beside the width, not in fp16 (whose range needs the loss scale, known in
    backward only), not while ZeRO-3 has partitioned the weights, and not where the head's forward
    was replaced (logits in fp32 under autocast).
    """
    positions = hidden.numel() // hidden.shape[-1]
    autocast = torch.is_autocast_enabled(hidden.device.type)
    half = torch.get_autocast_dtype(hidden.device.type) if autocast else hidden.dtype
    return (
        torch.is_grad_enabled()
        and half != torch.float16
        and "forward" not in vars(head)
        and head.weight.numel() == head.out_features * head.in_features
        and positions >= 4 * head.in_features
        and positions * head.out_features >= LARGE
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient is computed with the loss, chunk by chunk, and scaled in backward."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        target: Tensor,
    ) -> Tensor:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        with torch.autocast(device, enabled=False):
            total, *gradients = _loss_and_gradients(
                hidden.to(dtype), weight.to(dtype), bias.to(dtype), target
            )
        kept = zip(gradients, (hidden, weight, bias), strict=True)
        ctx.save_for_backward(*(gradient.to(each.dtype) for gradient, each in kept))
        return total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        scale: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        for_hidden, for_weight, for_bias = ctx.saved_tensors
        return for_hidden * scale, for_weight * scale, for_bias * scale, None


def _loss_and_gradients(
    hidden: Tensor, weight: Tensor, bias: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    count = len(hidden)
    total = hidden.new_zeros((), dtype=torch.float32)
    for_hidden = torch.empty_like(hidden)
    for_weight = torch.zeros_like(weight, dtype=torch.float32)
    for_bias = torch.zeros_like(bias, dtype=torch.float32)
    rows = max(1, CHUNK // len(weight))
    for first in range(0, count, rows):
        part, labels = hidden[first : first + rows], target[first : first + rows, None]
        logits = F.linear(part, weight, bias).float()
        normal = logits.logsumexp(dim=-1, keepdim=True)
        total += (normal - logits.gather(1, labels)).sum()
        # softmax less one-hot, over the count: the gradient of the mean
        slope = logits.sub_(normal).exp_()
        slope.scatter_add_(1, labels, slope.new_full((len(part), 1), -1.0))
        slope.div_(count)
        for_bias += slope.sum(0)
        slope = slope.to(hidden.dtype)
        torch.mm(slope, weight, out=for_hidden[first : first + rows])
        if hidden.dtype == torch.float32:
            for_weight.addmm_(slope.T, part)
        else:
            for_weight += slope.T @ part
    return total / count, for_hidden, for_weight, for_bias
