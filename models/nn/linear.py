"""Linear layers that keep less for backward, or read their weights better for a few rows."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

FEW = 8
"""Up to this many rows a product's time is that of reading its weights."""
PACKED_ROWS = 64
"""Up to this many rows weights are read as `MkldnnLinear` holds them."""

WEIGHTS_FIRST = "Intel" not in str(torch.cpu.get_capabilities().get("cpu_name"))
"""Whether W x^T is the faster order of a few rows in fp32 on this machine's CPU.

torch's products are MKL's, which has a kernel for few rows on Intel's processors alone. At 2 rows,
256 to 8,192 features, this order took a fifth of the time on an AMD EPYC and twice the time on an
Intel Xeon. It rounds differently in the last bit.
"""

Gelu = Literal["tanh", "none"]


class FastLinear(nn.Linear):
    """`nn.Linear`; without gradients a few rows in fp32 may take another order: WEIGHTS_FIRST."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


class GeluLinear(nn.Linear):
    """A linear layer of gelu(x) that keeps x alone for backward, and computes gelu again there.

    Plain layers keep both, which is a quarter of what a transformer block keeps.
    """

    def forward(self, x: Tensor, gelu: Gelu) -> Tensor:  # type: ignore[override]
        """(..., in) to (..., out)."""
        if not torch.is_grad_enabled():
            return linear(F.gelu(x, approximate=gelu), self.weight, self.bias)
        return _GeluLinear.apply(x, self.weight, self.bias, gelu)  # type: ignore[no-untyped-call]


class SplitLinear(nn.Linear):
    """Linear layers of one input and of equal widths, whose weights are one parameter."""

    def __init__(self, inputs: int, outputs: int, parts: int, *, bias: bool = True) -> None:
        super().__init__(inputs, parts * outputs, bias=bias)
        self.parts = parts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(..., inputs) to (..., outputs) of each.

        On a CPU each by itself: parts of one product are slow to read, and backward would have to
        join their gradients.
        """
        if x.device.type != "cpu":
            return super().forward(x).chunk(self.parts, dim=-1)
        each = (whole.view(self.parts, -1, *whole.shape[1:]) for whole in self.parameters())
        return tuple(F.linear(x, *part) for part in zip(*each, strict=True))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x times weight transposed, plus bias."""
    rows = x.numel() // x.shape[-1]
    if (
        bias is None
        or rows > FEW
        or not WEIGHTS_FIRST
        or x.device.type != "cpu"
        or x.dtype != torch.float32
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
    ):
        return F.linear(x, weight, bias)
    product = weight @ x.reshape(rows, -1).T
    return (product.T + bias).view(*x.shape[:-1], len(weight))


class MkldnnLinear:
    """A layer for up to 64 rows in bf16 on a CPU, its weights held again in the kernel's order.

    A bf16 product reorders them each time otherwise, which for a few rows takes longer than the
    product.
    """

    def __init__(self, layer: nn.Linear) -> None:
        weight = layer.weight.detach().to(torch.bfloat16)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        self._bias = layer.bias.detach().to(torch.bfloat16)
        self._plain = torch.ops.mkldnn._linear_pointwise.default
        self._adding = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        """The layer of (B, in), bit for bit: (B, out)."""
        return self._plain(as_type(x, torch.bfloat16), self._weight, self._bias, "none", [], "")

    def activated(self, x: Tensor, gelu: Gelu) -> Tensor:
        """GELU of the layer, which is not rounded before: (B, out)."""
        return self._plain(as_type(x, torch.bfloat16), self._weight, self._bias, "gelu", [], gelu)

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        """The layer added to (B, out), and not rounded before where that is bf16 too."""
        if to.dtype != torch.bfloat16:
            return to + self(x)
        return self._adding(as_type(x, torch.bfloat16), to, self._weight, self._bias, "add")

    @staticmethod
    def serves(weight: Tensor) -> bool:
        """Whether products with such weights are in bf16 now and on a CPU that can."""
        at_hand = weight.device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return at_hand and in_bf16(weight)


def as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, which takes longer to find that there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def in_bf16(weight: Tensor) -> bool:
    """Whether a product with these weights is in bf16, by itself or by autocast."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type) == torch.bfloat16
    return weight.dtype == torch.bfloat16


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
