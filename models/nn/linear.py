"""Linear layers that keep less for backward, or read their weights better for a few rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

FEW = 8
"""Up to this many rows a product on a CPU is faster with the weights on the left."""

PACKED_ROWS = 64
"""Up to this many rows weights are used as `packed` left them."""
PACKED_WEIGHTS = 2**30
"""No network with more weights is packed: it holds them twice."""

Gelu = Literal["tanh", "none"]


class Projection(nn.Linear):
    """`nn.Linear`; without gradients a few rows in fp32 on a CPU take another order.

    Measured at 2 rows, 256 to 8,192 features: 5 times as fast (one row after the other reads the
    weights twice). It rounds differently in the last bit.
    """

    packed: Tensor | None = None
    """The weights in the order of the bf16 kernel, while `packed` lasts."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return linear(x, self.weight, self.bias, self.packed)


class GeluLinear(nn.Linear):
    """A linear layer of gelu(x) that keeps x alone for backward, and computes gelu again there.

    Plain layers keep both, which is a quarter of what a transformer block keeps.
    """

    packed: Tensor | None = None
    """As in `Projection`."""

    def forward(self, x: Tensor, gelu: Gelu) -> Tensor:  # type: ignore[override]
        """(..., in) to (..., out)."""
        if not torch.is_grad_enabled():
            return linear(F.gelu(x, approximate=gelu), self.weight, self.bias, self.packed)
        return _GeluLinear.apply(x, self.weight, self.bias, gelu)  # type: ignore[no-untyped-call]


@contextmanager
def packed(module: nn.Module) -> Iterator[None]:
    """Lets the linear layers inside `module` compute few rows in bf16 without reordering weights.

    On a CPU a bf16 product puts its weights in the kernel's order first, which for a few rows takes
    longer than the product. Where weights, or autocast, are not bf16 nothing is done. Results are
    the same, bit for bit. Weights must not change inside.
    """
    layers = [each for each in module.modules() if isinstance(each, Projection | GeluLinear)]
    chosen = [each for each in layers if _in_bf16(each.weight)]
    if sum(each.weight.numel() for each in chosen) > PACKED_WEIGHTS or torch.is_grad_enabled():
        chosen = []
    for each in chosen:
        weight = each.weight.detach().to(torch.bfloat16)
        each.packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
    try:
        yield
    finally:
        for each in chosen:
            each.packed = None


def _in_bf16(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return weight.dtype == torch.bfloat16


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, packed_weight: Tensor | None = None
) -> Tensor:
    """x times weight transposed, plus bias."""
    rows = x.numel() // x.shape[-1]
    if packed_weight is not None and bias is not None and rows <= PACKED_ROWS:
        half, added = x.to(torch.bfloat16), bias.to(torch.bfloat16)
        return torch.ops.mkldnn._linear_pointwise(half, packed_weight, added, "none", [], "")
    if (
        bias is None
        or rows > FEW
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight, bias)
    product = weight @ x.reshape(rows, -1).T
    return (product.T + bias).view(*x.shape[:-1], len(weight))


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gelu: Gelu,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gelu, ctx.bias_dtype = gelu, bias.dtype
        return F.linear(F.gelu(x, approximate=gelu), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        active = F.gelu(x, approximate=ctx.gelu).to(gradient.dtype).flatten(0, -2)
        for_active = (flat @ weight.to(gradient.dtype)).view(x.shape).to(x.dtype)
        for_x = torch.ops.aten.gelu_backward(for_active, x, approximate=ctx.gelu)
        for_weight = (flat.T @ active).to(weight.dtype)
        return for_x, for_weight, flat.sum(0).to(ctx.bias_dtype), None
