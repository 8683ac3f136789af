"""Embeddings of times and places."""

import math

import torch
from torch import Tensor, nn


def sinusoidal(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of `t` (B,) in [0, 1] at geometric frequencies: (B, width) in fp32.

    Transformer position encoding (arXiv 1706.03762, 3.5) of the time in thousandths, as in DDPM.
    The frequencies are computed here, in fp32, whatever the weights are cast to.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(steps * (-math.log(10_000.0) / half))
    angles = t.float()[:, None] * 1000.0 * frequencies[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ScalarEmbedding(nn.Module):
    """A scalar per sample (time, level) to a vector: sinusoid, linear, SiLU, linear."""

    def __init__(self, width: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) in [0, 1] to (B, width)."""
        wave = sinusoidal(t, self.features).to(self.hidden.weight.dtype)
        return self.out(nn.functional.silu(self.hidden(wave)))


class Places(nn.Module):
    """Learned vectors of the places 0..count-1, started at a standard deviation of 0.02."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, first: int, last: int) -> Tensor:
        """The vectors of the places first..last-1: (last - first, width)."""
        return self.table(torch.arange(first, last, device=self.table.weight.device))


class GridPlaces(nn.Module):
    """A row plus a column vector for each place of an image grid, in raster order (DALL-E, B.1)."""

    def __init__(self, height: int, width: int, features: int) -> None:
        super().__init__()
        self.columns = width
        self.row = nn.Embedding(height, features)
        self.column = nn.Embedding(width, features)
        nn.init.normal_(self.row.weight, std=0.02)
        nn.init.normal_(self.column.weight, std=0.02)

    def forward(self, first: int, last: int) -> Tensor:
        """The vectors of the places first..last-1: (last - first, features)."""
        return self.at(torch.arange(first, last, device=self.row.weight.device))

    def at(self, place: Tensor) -> Tensor:
        """The vectors of places (n,): (n, features)."""
        return self.row(place // self.columns) + self.column(place % self.columns)
