"""Linear layers of a few rows on a CPU, where reading the weights takes the time."""

from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.cpu import is_enabled

PACKED_ROWS = 64
"""Up to this many rows `MkldnnLinear` is used."""

Gelu = Literal["tanh", "none"]


class LinearKernel(Protocol):
    """A linear layer as one call, with its weights as they were when it was made."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in) to (B, out)."""

    def gelu(self, x: Tensor, approximate: Gelu) -> Tensor:
        """GELU of the layer."""

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        """The layer, added to (B, out)."""


class PlainLinear:
    """A layer with its own weights, cast once to bf16 where autocast would."""

    def __init__(self, layer: nn.Linear) -> None:
        dtype = torch.bfloat16 if computes_in_bf16(layer.weight) else layer.weight.dtype
        self._weight, self._bias = layer.weight.to(dtype), layer.bias.to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(cast(x, self._weight.dtype), self._weight, self._bias)

    def gelu(self, x: Tensor, approximate: Gelu) -> Tensor:
        return F.gelu(self(x), approximate=approximate)

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        return to + self(x)


class MkldnnLinear:
    """A layer for up to 64 rows in bf16, with a copy of its weights in oneDNN's format.

    Otherwise a bf16 product reorders them each time, which takes longer than a product of few
    rows. GELU and sum take the unrounded product.
    """

    def __init__(self, layer: nn.Linear) -> None:
        weight = layer.weight.detach().to(torch.bfloat16)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        self._bias = layer.bias.detach().to(torch.bfloat16)
        self._unary = torch.ops.mkldnn._linear_pointwise.default
        self._binary = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        return self._unary(cast(x, torch.bfloat16), self._weight, self._bias, "none", [], "")

    def gelu(self, x: Tensor, approximate: Gelu) -> Tensor:
        x = cast(x, torch.bfloat16)
        return self._unary(x, self._weight, self._bias, "gelu", [], approximate)

    def add(self, x: Tensor, to: Tensor) -> Tensor:
        if to.dtype != torch.bfloat16:
            return to + self(x)
        return self._binary(cast(x, torch.bfloat16), to, self._weight, self._bias, "add")

    @staticmethod
    def is_supported(weight: Tensor) -> bool:
        """Whether products with such weights are in bf16 now and on a CPU that can."""
        return (
            weight.device.type == "cpu"
            and is_enabled("mkldnn_linear")
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
            and computes_in_bf16(weight)
        )


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, which takes longer to find that there is nothing to do."""
    return x if x.dtype == dtype else x.to(dtype)


def computes_in_bf16(weight: Tensor) -> bool:
    """Whether a product with these weights is in bf16, by itself or by autocast."""
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type) == torch.bfloat16
    return weight.dtype == torch.bfloat16
