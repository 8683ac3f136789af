"""Convolutions on a CPU that keep less for backward than torch's, and compute the same."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.nn.cpu import is_enabled


def keeps_no_input(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution's input is needed for nothing: on a CPU, the weights are frozen."""
    return (
        x.device.type == "cpu"
        and x.requires_grad
        and torch.is_grad_enabled()
        and not weight.requires_grad
        and is_enabled("lean_convolution")
    )


def frozen_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3 x 3 convolution, padded by 1, by weights that get no gradient; torch keeps its input."""
    return _FrozenConv3x3.apply(x, weight, bias)  # type: ignore[no-untyped-call]


def silu_conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of silu(x) that keeps x alone for backward, and computes SiLU again there."""
    return _SiluConv.apply(  # type: ignore[no-untyped-call]
        x, layer.weight, layer.bias, layer.stride, layer.padding
    )


class _FrozenConv3x3(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return F.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        for_x = F.conv_transpose2d(gradient, weight.to(gradient.dtype), padding=1)
        return for_x.to(ctx.dtype), None, None


class _SiluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(F.silu(x), weight, bias, stride=stride, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        for_active, for_weight, for_bias = torch.ops.aten.convolution_backward(
            gradient,
            F.silu(x).to(gradient.dtype),
            weight.to(gradient.dtype),
            [len(weight)],
            ctx.stride,
            ctx.padding,
            [1, 1],
            False,  # noqa: FBT003
            [0, 0],
            1,
            ctx.needs_input_grad[:3],
        )
        for_x = torch.ops.aten.silu_backward(for_active.to(x.dtype), x)
        return for_x, _to(for_weight, weight.dtype), _to(for_bias, weight.dtype), None, None


def _to(gradient: Tensor | None, dtype: torch.dtype) -> Any:  # noqa: ANN401
    return None if gradient is None else gradient.to(dtype)
