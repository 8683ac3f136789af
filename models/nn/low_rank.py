"""Low-rank adapters of a network's weights (LoRA, arXiv 2106.09685)."""

from collections.abc import Collection, Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

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
        return torch.addmm(weight.flatten(1), self.up, self.down).view(weight.shape)


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

    The network's own weights are frozen and stay as they are, also in memory.
    """
    network.requires_grad_(requires_grad=False)
    for layer in adaptable(network, rank, without=without):
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, rng))


def adapters(network: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """The adapters of a network with the names of their layers."""
    for name, module in network.named_modules():
        if isinstance(module, LowRank):
            yield name.removesuffix(".parametrizations.weight.0"), module


def remove_adapters(network: nn.Module) -> None:
    """Take all adapters out: the network is the one that it was, bit for bit."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
