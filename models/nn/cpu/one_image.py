"""3 x 3 convolutions of one small image, or a few, in fp32 by oneDNN's products.

torch unrolls one such image for MKL's products, which on AMD's CPUs are half as fast as oneDNN's,
and fills what they write with zeros first; or it lets oneDNN reorder the kernels for one use, which
takes as long as the products.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.nn.cpu import IS_INTEL, is_enabled
from models.nn.cpu.products import product

POSITIONS = 512
"""Of all images, up to which this is faster, forward and backward, than what torch does."""
FOLDED = 64
"""Up to this many positions adding up products is faster than oneDNN's transposed convolution,
which first reorders the kernels."""


def is_supported(x: Tensor, weight: Tensor) -> bool:
    """Whether x (B, C, H, W) is small, and both are fp32 with channels last, on an AMD CPU."""
    return (
        x.device.type == "cpu"
        and len(x) * x.shape[2] * x.shape[3] <= POSITIONS
        and x.dtype == weight.dtype == torch.float32
        and not IS_INTEL
        and is_enabled("one_image")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.is_contiguous(memory_format=torch.channels_last)
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W), padded by 1, by kernels (D, C, 3, 3) and biases (D,) to (B, D, H, W)."""
    return _OneImage.apply(x, weight, bias)  # type: ignore[no-untyped-call]


class _OneImage(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        rows = product(_unrolled(x), _matrix(weight), bias)
        # a copy, since autograd forbids changing a view in position
        return rows.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2).clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        for_x, for_weight, for_bias = None, None, None
        if ctx.needs_input_grad[0]:
            small = gradient[:, 0].numel() <= FOLDED
            for_x = (_folded if small else _transposed)(gradient, weight)
        rows = _rows(gradient)
        if ctx.needs_input_grad[1]:
            for_weight = product(rows.T, _unrolled(x).T)
            for_weight = for_weight.view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            for_bias = rows.sum(0)
        return for_x, for_weight, for_bias


def convolve_adapted(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor
) -> Tensor:
    """The same by weight + up down, of (D, R) and (R, 9 C), which is not formed.

    Weight and bias are frozen.
    """
    # what an unrolled image reads is (position, channel), of `down` (channel, position)
    ordered = down.view(len(down), -1, 9).transpose(1, 2).flatten(1)
    return _Adapted.apply(x, weight, bias, ordered, up)  # type: ignore[no-untyped-call]


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
    ) -> Tensor:
        read = _unrolled(x)
        low = product(read, down)
        ctx.save_for_backward(x, weight, down, up, low)
        rows = product(read, _matrix(weight), bias).addmm_(low, up.T)
        return rows.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2).clone()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        x, weight, down, up, low = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        rows, for_x = _rows(gradient), None
        for_low = rows @ up
        if ctx.needs_input_grad[0]:
            if len(rows) <= FOLDED:
                read = product(rows, _matrix(weight).T).addmm_(for_low, down)
                for_x = _added(read, gradient)
            else:
                for_x = _transposed(gradient, weight).add_(_added(for_low @ down, gradient))
        return for_x, None, None, product(for_low.T, _unrolled(x).T), rows.T @ low


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B H W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _matrix(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) to (D, 9 C)."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _unrolled(x: Tensor) -> Tensor:
    """What each position of (B, C, H, W), padded by 1, reads: (B H W, 9 C)."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    (count, height, width, channels), (image, row, column, _) = padded.shape, padded.stride()
    windows = (count, height - 2, width - 2, 3, 3 * channels)
    return padded.as_strided(windows, (image, row, column, row, 1)).reshape(-1, 9 * channels)


def _transposed(gradient: Tensor, weight: Tensor) -> Tensor:
    """The gradient (B, C, H, W) of the input."""
    return torch.ops.mkldnn._convolution_transpose_pointwise(
        gradient, weight, None, [1, 1], [0, 0], [1, 1], [1, 1], 1, "none", [], ""
    )


def _folded(gradient: Tensor, weight: Tensor) -> Tensor:
    """The same; each position adds to the nine that it read."""
    read = product(_rows(gradient), _matrix(weight).T)
    return _added(read, gradient)


def _added(read: Tensor, gradient: Tensor) -> Tensor:
    """(B H W, 9 C), what each position of (B, D, H, W) gives to those that it read.

    Added up to (B, C, H, W).
    """
    count, _, height, width = gradient.shape
    read = read.view(count, height, width, 3, 3, -1)
    padded = read.new_zeros(count, height + 2, width + 2, read.shape[-1])
    for row in range(3):
        for column in range(3):
            place = padded[:, row : row + height, column : column + width]
            place.add_(read[:, :, :, row, column])
    return padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
