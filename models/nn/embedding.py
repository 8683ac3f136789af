"""Embeddings of times and places."""

import math

import torch
from torch import Tensor, nn

from models.nn import initialization


def sinusoidal(t: Tensor, width: int, *, first: int = 0, ends: bool = False) -> Tensor:
    """Sines and cosines of `t` (B,) in [0, 1] at geometric frequencies: (B, width) in fp32.

    Transformer position encoding (arXiv 1706.03762, 3.5) of the time in thousandths, less `first`.
    Frequencies fall from 1 towards 1/10,000, and reach it if it `ends` them (DDPM). They
    are computed here, in fp32, whatever the weights are cast to.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(steps * (-math.log(10_000.0) / (half - ends)))
    angles = (t.float()[:, None] * 1000.0 - first) * frequencies[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedding(nn.Module):
    """A scalar per sample (time, level) to a vector: sinusoid, linear, SiLU, linear.

    `first` and `ends` are those of `sinusoidal`.
    """

    def __init__(
        self, width: int, features: int = 256, *, first: int = 0, ends: bool = False
    ) -> None:
        super().__init__()
        self.features, self.first, self.ends = features, first, ends
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) in [0, 1] to (B, width)."""
        wave = sinusoidal(t, self.features, first=self.first, ends=self.ends)
        wave = wave.to(self.hidden.weight.dtype)
        return self.out(nn.functional.silu(self.hidden(wave)))


class LearnedPositionEmbedding(nn.Module):
    """Learned vectors of the places 0..count-1, started at a standard deviation of 0.02."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, width)
        initialization.normal(self.table.weight, 0.02)

    def forward(self, first: int, last: int) -> Tensor:
        """The vectors of the places first..last-1: (last - first, width)."""
        return self.table(torch.arange(first, last, device=self.table.weight.device))


class AxialPositionEmbedding(nn.Module):
    """A row plus a column vector for each place of an image grid, in raster order (DALL-E, B.1)."""

    def __init__(self, height: int, width: int, features: int) -> None:
        super().__init__()
        self.columns = width
        self.row = nn.Embedding(height, features)
        self.column = nn.Embedding(width, features)
        initialization.normal(self.row.weight, 0.02)
        initialization.normal(self.column.weight, 0.02)

    def forward(self, first: int, last: int) -> Tensor:
        """The vectors of the places first..last-1: (last - first, features)."""
        return self.at(torch.arange(first, last, device=self.row.weight.device))

    def at(self, place: Tensor) -> Tensor:
        """The vectors of places (n,): (n, features)."""
        return self.row(place // self.columns) + self.column(place % self.columns)


def sincos_positions(side: int, features: int) -> Tensor:
    """Sines and cosines of the places of a square grid, in raster order: (side^2, features), fp32.

    The first half of the features tells the column, the second the row, each by `features` / 4
    geometric frequencies from 1 towards 1/10,000 (as in the released code of arXiv 2212.09748).
    """
    quarter = features // 4
    steps = torch.arange(quarter, dtype=torch.float64, device="cpu")
    angles = torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * 10_000.0 ** (
        -steps / quarter
    )
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = one.repeat(side, 1), one.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()
