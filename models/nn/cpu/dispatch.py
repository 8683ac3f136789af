"""Operations of the networks: by a CPU kernel where one is faster, by plain torch otherwise."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.cpu import attention as cpu_attention
from models.nn.cpu import (
    bf16_kernels,
    convolution,
    group_norm,
    is_enabled,
    one_image,
    products,
    winograd,
)
from models.nn.cpu.linear import computes_in_bf16


class Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution of stride 1, padded by 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return conv3x3(x, self.weight, self.bias)

    def upsample_conv(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W), upsampled by 2 (nearest), to (B, outputs, 2 H, 2 W)."""
        fast = is_enabled("winograd") and winograd.UPSAMPLED.is_supported(x, self.weight)
        if self.bias is not None and fast:
            return winograd.convolve(x, self.weight, self.bias, winograd.UPSAMPLED)
        return self.forward(F.interpolate(x, scale_factor=2, mode="nearest"))


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, inputs, H, W), padded by 1, by kernels (outputs, inputs, 3, 3) of stride 1."""
    transform = winograd.tiles_for(x, weight) if is_enabled("winograd") else None
    if bias is not None and transform is not None:
        return winograd.convolve(x, weight, bias, transform)
    if one_image.is_supported(x, weight):
        return one_image.convolve(x, weight, bias)
    if convolution.keeps_no_input(x, weight):
        return convolution.frozen_conv3x3(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`."""
    if products.is_supported(x, weight):
        return products.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def in_format(x: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W) in the memory format in which the layers behind `weight` are fastest."""
    if x.device.type != "cpu":
        return x.contiguous(memory_format=torch.channels_last)
    dtype = torch.bfloat16 if computes_in_bf16(weight) else weight.dtype
    return x.contiguous(memory_format=group_norm.image_format(dtype))


@contextmanager
def kernels_in_format(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, kernels of convolutions lie in memory as `in_format` lays out features.

    Where they lie otherwise torch copies them at each call, which counts for one small image.
    """
    kernels = [each for network in networks for each in network.parameters() if each.ndim == 4]
    for kernel in kernels:
        kernel.data = in_format(kernel.data, kernel)
    try:
        yield
    finally:
        for kernel in kernels:
            kernel.data = kernel.data.contiguous()


def silu_conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of silu(x), both of (B, C, H, W)."""
    keeps = torch.is_grad_enabled() and x.requires_grad and x.device.type == "cpu"
    if keeps and is_enabled("lean_convolution"):
        return convolution.silu_conv(layer, x)
    return F.conv2d(F.silu(x), layer.weight, layer.bias, stride=layer.stride, padding=layer.padding)


def norm_act(
    norm: nn.GroupNorm,
    x: Tensor,
    *,
    silu: bool,
    input_bias: Tensor | None = None,
    scale_shift: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """norm(x + input_bias) (1 + scale) + shift of x (B, C, H, W), and SiLU of it if `silu`.

    `input_bias`, scale and shift are (B, C). With an `input_bias`, x may be changed in position:
    nothing else is to read it.
    """
    slow = group_norm.is_supported(x)
    large = x.shape[2] * x.shape[3] > group_norm.SMALL
    if large and (slow or (silu and group_norm.keeps_less(x))):
        return group_norm.fused(norm, x, silu=silu, input_bias=input_bias, scale_shift=scale_shift)
    plain = silu and scale_shift is None and not slow and x.is_contiguous()
    first = plain and x.device.type == "cpu" and x.dtype.itemsize == 2
    y = x if input_bias is None else x.add_(input_bias.to(x.dtype)[:, :, None, None])
    if first and torch.is_grad_enabled() and is_enabled("group_norm"):
        return group_norm.channels_first(norm, y)
    # back at once: what follows is to get its gradient in the memory format that it saved
    y = norm(y.contiguous()).contiguous(memory_format=torch.channels_last) if slow else norm(y)
    if scale_shift is not None:
        scale, shift = (each.to(x.dtype)[:, :, None, None] for each in scale_shift)
        y = y * (1 + scale) + shift
    # backward reads the input of SiLU
    return F.silu(y, inplace=not torch.is_grad_enabled()) if silu else y


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, mask: Tensor | None = None
) -> Tensor:
    """`F.scaled_dot_product_attention` of (B, H, L, C); `mask` (B, keys) says which keys count."""
    if mask is not None:
        shaped = mask[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=shaped)
    if cpu_attention.products_are_faster(query, key):
        return cpu_attention.by_products(query, key, value, causal=causal)
    if not causal and cpu_attention.heads_in_turn_are_faster(query, key):
        return cpu_attention.by_heads(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


def kv_cache_dtype(states: Tensor) -> torch.dtype:
    """The precision in which keys and values of states (..., C) are kept: theirs.

    On a CPU, fp32 instead of bf16 where one query's products with keys in bf16 take four times as
    long: without matrix units (AMX), and without the compiled kernel.
    """
    if (
        states.device.type != "cpu"
        or states.dtype != torch.bfloat16
        or not is_enabled("decode_attention")
        or bf16_kernels.MATRIX_UNITS
        or bf16_kernels.has_attention(states.shape[-1])
    ):
        return states.dtype
    return torch.float32


def cached_attention(store: Tensor) -> Callable[[Tensor, int, int], Tensor] | None:
    """Attention of one query to keys and values (2, B, H, slots, C), or None for torch's.

    It takes (qkv, slot, count), puts the key and the value of one position, (B, 3, H, 1, C), into
    a slot, and returns softmax(q k / sqrt(C)) v over the first `count` slots, (B, H, 1, C).
    """
    if bf16_kernels.Avx512Attention.is_supported(store):
        return bf16_kernels.Avx512Attention(store)
    if cpu_attention.Fp32CachedAttention.is_supported(store):
        return cpu_attention.Fp32CachedAttention(store)
    return None
