"""Linear layers that keep less for backward, or share one parameter."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.nn.cpu.linear import Gelu


class GeluLinear(nn.Linear):
    """A linear layer of gelu(x) that keeps x alone for backward, and computes gelu again there.

    Plain layers keep both, which is a quarter of what a transformer block keeps.
    """

    def forward(self, x: Tensor, gelu: Gelu) -> Tensor:  # type: ignore[override]
        """(..., in) to (..., out)."""
        if not torch.is_grad_enabled():
            return F.linear(F.gelu(x, approximate=gelu), self.weight, self.bias)
        return _GeluLinear.apply(x, self.weight, self.bias, gelu)  # type: ignore[no-untyped-call]


class SplitLinear(nn.Linear):
    """Linear layers of one input and of equal widths, whose weights are one parameter."""

    def __init__(self, inputs: int, outputs: int, parts: int, *, bias: bool = True) -> None:
        super().__init__(inputs, parts * outputs, bias=bias)
        self.parts = parts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(..., inputs) to (..., outputs) of each."""
        return F.linear(x, self.weight, self.bias).chunk(self.parts, dim=-1)


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
