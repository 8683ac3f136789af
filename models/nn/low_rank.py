"""Low-rank adapters of a network's weights (LoRA, arXiv 2106.09685)."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils import parametrize

from models.nn.cpu import one_image
from models.nn.cpu.dispatch import Conv3x3, conv3x3, linear
from models.nn.cpu.linear import computes_in_bf16
from models.nn.linear import GegluLinear, Linear, SplitLinear
from models.nn.random import normal

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


class LowRank(nn.Module):
    """W + up down, of rank `rank` at most (arXiv 2106.09685, eq. 3 with alpha = rank).

    `up` starts at 0, so a new adapter changes nothing.
    """

    def __init__(self, weight: Tensor, rank: int, rng: Generator) -> None:
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        down = normal((rank, columns), rng, weight.device) * columns**-0.5
        self.down = nn.Parameter(down.to(weight.dtype))
        self.up = nn.Parameter(torch.zeros(rows, rank, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, of the same shape; of a convolution it counts as a matrix."""
        if weight.is_contiguous():
            return torch.addmm(weight.flatten(1), self.up, self.down).view(weight.shape)
        return weight + (self.up @ self.down).view(weight.shape)


def adaptable(
    network: nn.Module, rank: int, *, without: Collection[nn.Module] = ()
) -> list[nn.Linear | nn.Conv1d | nn.Conv2d]:
    """The linear and convolutional layers, outside `without`, whose weight has a larger rank."""
    excluded = {id(each) for module in without for each in module.modules()}
    return [
        module
        for module in network.modules()
        if isinstance(module, _LAYERS) and id(module) not in excluded
        if rank < min(len(module.weight), module.weight[0].numel())
    ]


def add_adapters(
    network: nn.Module, rank: int, rng: Generator, *, without: Collection[nn.Module] = ()
) -> None:
    """Give each layer of `adaptable` an adapter.

    The network's own weights are frozen and stay as they are, also in memory. What a layer's
    `weight` gives is always W + up down. Where gradients are kept, layers
    of `_FACTORED` do not form it. They compute W x + up (down x), so that neither W + up down nor
    its gradient is in memory.
    """
    network.requires_grad_(requires_grad=False)
    for layer in adaptable(network, rank, without=without):
        kind = type(layer)
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, rng))
        if kind in _FACTORED:
            setattr(layer, _method(kind), partial(_forward, kind, layer))


def adapters(network: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """The adapters of a network with the names of their layers."""
    for name, module in network.named_modules():
        if isinstance(module, LowRank):
            yield name.removesuffix(".parametrizations.weight.0"), module


def remove_adapters(network: nn.Module) -> None:
    """Take all adapters out: the network is the one that it was, bit for bit."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            for name in ("forward", "together"):
                vars(module).pop(name, None)
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def _forward(kind: type[nn.Module], layer: nn.Module, x: Tensor) -> object:
    if not torch.is_grad_enabled():
        return getattr(kind, _method(kind))(layer, x)
    return _FACTORED[kind](layer, x)


def _method(kind: type[nn.Module]) -> str:
    """What computes the output of W plus that of up down."""
    return "together" if kind is SplitLinear else "forward"


def _parts(layer: nn.Module) -> tuple[Tensor, LowRank]:
    """W, and the adapter."""
    found = layer.parametrizations.weight  # type: ignore[union-attr]
    return found.original, found[0]  # type: ignore[index, union-attr, return-value]


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    weight, adapter = _parts(layer)
    dtype = torch.bfloat16 if computes_in_bf16(weight) else weight.dtype
    given = (x, weight, layer.bias, adapter.down, adapter.up)
    cast = [each.to(dtype) if isinstance(each, Tensor) else None for each in given]
    with torch.autocast(x.device.type, enabled=False):
        return _Adapted.apply(*cast)  # type: ignore[no-untyped-call]


class _Adapted(torch.autograd.Function):
    """x (W + up down)^T + bias of (..., C); W and the bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        low = linear(rows, down, None)
        ctx.save_for_backward(rows, weight, down, up, low)
        y = linear(rows, weight, bias).addmm_(low, up.T)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,  # noqa: ANN401
        gradient: Tensor,
    ) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        rows, weight, down, up, low = ctx.saved_tensors
        flat, for_x = gradient.flatten(0, -2), None
        for_low = flat @ up
        if ctx.needs_input_grad[0]:
            for_x = linear(flat, weight.T, None).addmm_(for_low, down)
            for_x = for_x.view(*gradient.shape[:-1], -1)
        return for_x, None, None, for_low.T @ rows, flat.T @ low


def _geglu_linear(layer: nn.Module, hidden: Tensor) -> Tensor:
    value, gate = hidden.chunk(2, dim=-1)
    return _linear(layer, value * F.gelu(gate))


def _convolution(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    weight, adapter = _parts(layer)
    down = adapter.down.view(-1, *weight.shape[1:])
    if isinstance(layer, Conv3x3) and one_image.is_supported(x, weight):
        return one_image.convolve_adapted(x, weight, layer.bias, adapter.down, adapter.up)
    if isinstance(layer, Conv3x3):
        y = conv3x3(x, weight, layer.bias)
        low = conv3x3(x, down.contiguous(memory_format=torch.channels_last), None)
    else:
        y = layer._conv_forward(x, weight, layer.bias)
        low = layer._conv_forward(x, down, None)
    return y + F.conv2d(low, adapter.up[:, :, None, None])


_FACTORED: dict[type[nn.Module], Callable[[nn.Module, Tensor], object]] = {
    nn.Linear: _linear,
    Linear: _linear,
    SplitLinear: _linear,
    GegluLinear: _geglu_linear,
    nn.Conv2d: _convolution,
    Conv3x3: _convolution,
}
"""The layers whose output is that of W plus that of up down, by their exact class."""
