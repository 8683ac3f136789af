"""Linear layers that keep less for backward, or share one parameter."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.nn.cpu.dispatch import linear
from models.nn.cpu.linear import Gelu


class Linear(nn.Linear):
    """A linear layer of many rows, by the fastest products."""

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
            return F.linear(F.gelu(x, approximate=gelu), self.weight, self.bias)
        return _GeluLinear.apply(x, self.weight, self.bias, gelu)  # type: ignore[no-untyped-call]


class GegluLinear(nn.Linear):
    """A linear layer of value x gelu(gate), the halves of its input, which alone it keeps on a CPU.

    Plain layers also keep gelu(gate) and the product, as large as the input together.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., 2 in) to (..., out)."""
        if torch.is_grad_enabled() and hidden.device.type == "cpu":
            return _GegluLinear.apply(hidden, self.weight, self.bias)  # type: ignore[no-untyped-call]
        value, gate = hidden.chunk(2, dim=-1)
        return linear(value * F.gelu(gate), self.weight, self.bias)


class SplitLinear(nn.Linear):
    """Linear layers of one input and of equal widths, whose weights are one parameter."""

    def __init__(self, inputs: int, outputs: int, parts: int, *, bias: bool = True) -> None:
        super().__init__(inputs, parts * outputs, bias=bias)
        self.parts = parts

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(..., inputs) to (..., outputs) of each."""
        return self.together(x).chunk(self.parts, dim=-1)

    def together(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., parts x outputs)."""
        return linear(x, self.weight, self.bias)


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


class _GegluLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        ctx.bias_dtype = bias.dtype
        value, gate = hidden.chunk(2, dim=-1)
        return linear(value * F.gelu(gate), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        value, gate = hidden.chunk(2, dim=-1)
        flat, active = gradient.flatten(0, -2), F.gelu(gate)
        for_active = linear(flat, weight.T.to(gradient.dtype), None)
        for_active = for_active.view(value.shape).to(hidden.dtype)
        for_hidden = torch.empty_like(hidden)
        for_value, for_gate = for_hidden.chunk(2, dim=-1)
        torch.mul(for_active, active, out=for_value)
        torch.ops.aten.gelu_backward.grad_input(for_active.mul_(value), gate, grad_input=for_gate)
        for_weight, for_bias = None, None
        if ctx.needs_input_grad[1]:
            product = active.mul_(value).to(gradient.dtype).flatten(0, -2)
            for_weight = linear(flat.T, product.T, None).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            for_bias = flat.sum(0).to(ctx.bias_dtype)
        return for_hidden, for_weight, for_bias
