"""Group norm and the SiLU behind it as one operation, for channels-last inputs on a CPU.

torch's own group norm is slow there: its backward takes up to 30 times as long as with channels
first, whose convolutions are the slower ones. In fp32 its own is as fast as this, but with SiLU
behind it keeps one more tensor of its input's size for backward.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.nn.cpu import IS_INTEL, bf16_kernels, is_enabled

SMALL = 64
"""Up to this many positions, reordering them for torch's own norm of channels first is faster."""


def is_supported(x: Tensor) -> bool:
    """Whether torch's own norm of (B, C, H, W) is slow: 16 bits, channels last, on a CPU."""
    return (
        x.device.type == "cpu"
        and x.dtype.itemsize == 2
        and is_enabled("group_norm")
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def image_format(dtype: torch.dtype) -> torch.memory_format:
    """How a UNet's features of a computing precision lie in memory on this machine's CPU.

    Channels come last; but not in bf16 without matrix units, as measured on an AMD EPYC (Zen 5),
    where a UNet's training step takes 3 to 8% less time with channels first.
    """
    first = dtype == torch.bfloat16 and not bf16_kernels.MATRIX_UNITS and not IS_INTEL
    return torch.contiguous_format if first else torch.channels_last


def keeps_less(x: Tensor) -> bool:
    """Whether the one operation keeps less of x for backward: fp32, channels last, on a CPU."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.is_grad_enabled()
        and is_enabled("group_norm")
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def fused(
    norm: nn.GroupNorm,
    x: Tensor,
    *,
    silu: bool,
    input_bias: Tensor | None = None,
    scale_shift: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`dispatch.norm_act` in one step; its numbers per channel are in fp32."""
    weight, bias = norm.weight.float(), norm.bias.float()
    if scale_shift is not None:
        scale, shift = (each.float() for each in scale_shift)
        weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
    added = None if input_bias is None else input_bias.float()
    return _GroupNormSiLU.apply(  # type: ignore[no-untyped-call]
        x, added, weight, bias, norm.num_groups, norm.eps, silu
    )


def channels_first(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """silu(norm x) by torch's own norm; keeps x alone, and computes the norm again for backward."""
    return _ChannelsFirst.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.bias, norm.num_groups, norm.eps
    )


class _ChannelsFirst(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        epsilon: float,
    ) -> Tensor:
        sizes = len(x), x.shape[1], x.shape[2] * x.shape[3], groups
        y, mean, inverse = torch.ops.aten.native_group_norm(x, weight, bias, *sizes, epsilon)
        ctx.save_for_backward(x, weight, bias, mean, inverse)
        ctx.sizes, ctx.epsilon = sizes, epsilon
        return F.silu(y, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, bias, mean, inverse = ctx.saved_tensors
        y, _, _ = torch.ops.aten.native_group_norm(x, weight, bias, *ctx.sizes, ctx.epsilon)
        slope = torch.ops.aten.silu_backward.grad_input(gradient.contiguous(), y, grad_input=y)
        found = torch.ops.aten.native_group_norm_backward(
            slope, x, mean, inverse, weight, *ctx.sizes, [True, True, True]
        )
        return *found, None, None


class _GroupNormSiLU(torch.autograd.Function):
    """silu(z), z = factor x + constant, both (B, C) and of x's statistics, which are in fp32.

    It keeps x alone, and computes z again for backward. Numbers per channel are (B, G, C / G).
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        added: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        epsilon: float,
        silu: bool,  # noqa: FBT001
    ) -> Tensor:
        mean, variance = _statistics(x).view(2, len(x), groups, -1).unbind()
        moved = mean if added is None else mean + added.view(mean.shape)
        middle = moved.mean(2, keepdim=True)
        away = moved - middle
        inverse = torch.addcmul(variance, away, away).mean(2, keepdim=True).add_(epsilon).rsqrt_()
        if added is not None:
            middle = middle - added.view(mean.shape)
        ctx.weight_shape = weight.shape
        weight = weight.view(-1, *mean.shape[1:])
        factor = weight * inverse
        constant = torch.addcmul(bias.view(weight.shape), factor, middle, value=-1)
        factor, constant = _like(x, factor), _like(x, constant)
        y = torch.empty_like(x)
        z = torch.addcmul(constant, _rows(x), factor, out=_rows(y))
        if silu:
            F.silu(z, inplace=True)
        ctx.save_for_backward(x, weight, mean, middle, inverse, factor, constant)
        ctx.silu, ctx.has_added = silu, added is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, None, None, None]:
        x, weight, mean, middle, inverse, factor, constant = ctx.saved_tensors
        rows, slope = _rows(x), _rows(gradient)
        if ctx.silu:
            z = torch.addcmul(constant, rows, factor)
            slope = torch.ops.aten.silu_backward.grad_input(slope, z, grad_input=z)
        sums = torch.stack([slope.sum(1), (slope * rows).sum(1)])
        for_bias, along = sums.float().view(2, *mean.shape).unbind()
        for_weight = torch.addcmul(along, middle, for_bias, value=-1).mul_(inverse)
        # x acts through its group's deviation and mean, too
        share = inverse / -rows.shape[1]
        deviation = (weight * for_weight).mean(2, keepdim=True) * share * inverse
        level = (weight * for_bias).mean(2, keepdim=True) * share - deviation * middle
        for_x = torch.empty_like(x)
        change = torch.addcmul(_like(x, level), rows, _like(x, deviation), out=_rows(for_x))
        change.addcmul_(slope, factor)
        for_added = None
        if ctx.has_added:
            changes = weight * inverse * for_bias + (deviation * mean + level) * rows.shape[1]
            for_added = changes.view(len(x), -1)
        for_weight, for_bias = (
            each.view(len(x), -1).sum_to_size(ctx.weight_shape) for each in (for_weight, for_bias)
        )
        return for_x, for_added, for_weight, for_bias, None, None, None


def _statistics(x: Tensor) -> Tensor:
    """Means, then variances, of the channels of every image: (2 B, C), by batch norm's kernel."""
    unused = x.new_zeros(2, x.shape[1], dtype=torch.float32).unbind()
    found = [
        torch.ops.aten.batch_norm_update_stats(each, *unused, 0.0) for each in torch.split(x, 1)
    ]
    mean, variance = zip(*found, strict=True)
    return torch.stack([*mean, *variance])


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H W, C)."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, x.shape[1])


def _like(x: Tensor, values: Tensor) -> Tensor:
    """(B, G, 1 or C / G) to what multiplies the rows of x: (B, 1, C), in its precision."""
    groups = values.shape[1]
    each = values.to(x.dtype).expand(len(x), groups, x.shape[1] // groups)
    return each.reshape(len(x), 1, -1)
