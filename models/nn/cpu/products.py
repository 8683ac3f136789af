"""Products of matrices in fp32 by oneDNN, which on AMD's CPUs are twice as fast as MKL's."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.nn.cpu import IS_INTEL, is_enabled

ROWS = 16
"""From this many on; of fewer MKL's are as fast."""


def is_supported(x: Tensor, weight: Tensor) -> bool:
    """Whether linear layers of x (..., C) take this way: both are in fp32 on an AMD CPU."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not IS_INTEL
        and x.numel() >= ROWS * x.shape[-1]
        and is_enabled("products")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`."""
    if torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product(x, weight, bias)


def product(rows: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows matrix^T + bias, of (..., C) and (D, C)."""
    return torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = None, None, None
        if ctx.needs_input_grad[0]:
            for_x = product(gradient, weight.T)
        rows = gradient.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            for_weight = product(rows.T, x.flatten(0, -2).T)
        if ctx.needs_input_grad[2]:
            for_bias = rows.sum(0)
        return for_x, for_weight, for_bias
