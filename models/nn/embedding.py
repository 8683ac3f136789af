"""Embeddings of timesteps and positions."""

import math

import torch
from torch import Tensor, nn

from models.nn import initialization


def sinusoidal_embedding(
    t: Tensor, width: int, *, timestep_offset: int = 0, freq_shift: int = 0
) -> Tensor:
    """Cosines and sines of `t` (B,) in [0, 1] at geometric frequencies: (B, width) in fp32.

    Transformer position encoding (arXiv 1706.03762, 3.5) of 1000 t - `timestep_offset`. Frequencies
    fall from 1 towards 1/10,000, which they reach with a `freq_shift` of 1 (DDPM). They are
    computed in fp32 whatever the precision of the weights.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(steps * (-math.log(10_000.0) / (half - freq_shift)))
    angles = (t.float()[:, None] * 1000.0 - timestep_offset) * frequencies[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimestepEmbedding(nn.Module):
    """A scalar per sample (timestep, noise level) to a vector: sinusoid, linear, SiLU, linear.

    `timestep_offset` and `freq_shift` are those of `sinusoidal_embedding`.
    """

    def __init__(
        self, width: int, features: int = 256, *, timestep_offset: int = 0, freq_shift: int = 0
    ) -> None:
        super().__init__()
        self.features = features
        self.timestep_offset, self.freq_shift = timestep_offset, freq_shift
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) in [0, 1] to (B, width)."""
        wave = sinusoidal_embedding(
            t, self.features, timestep_offset=self.timestep_offset, freq_shift=self.freq_shift
        )
        return self.out(nn.functional.silu(self.hidden(wave.to(self.hidden.weight.dtype))))


class LearnedPositionEmbedding(nn.Module):
    """Learned vectors of the positions 0..count-1, initialised with standard deviation 0.02."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(count, width)
        initialization.normal(self.table.weight, 0.02)

    def forward(self, first: int, last: int) -> Tensor:
        """The vectors of the positions first..last-1: (last - first, width)."""
        return self.table(torch.arange(first, last, device=self.table.weight.device))


class AxialPositionEmbedding(nn.Module):
    """A row plus a column vector per position of an image grid, in raster order (DALL-E, B.1)."""

    def __init__(self, height: int, width: int, features: int) -> None:
        super().__init__()
        self.columns = width
        self.row = nn.Embedding(height, features)
        self.column = nn.Embedding(width, features)
        initialization.normal(self.row.weight, 0.02)
        initialization.normal(self.column.weight, 0.02)

    def forward(self, first: int, last: int) -> Tensor:
        """The vectors of the positions first..last-1: (last - first, features)."""
        return self.at(torch.arange(first, last, device=self.row.weight.device))

    def at(self, position: Tensor) -> Tensor:
        """The vectors of positions (n,): (n, features)."""
        return self.row(position // self.columns) + self.column(position % self.columns)


def sincos_positions(side: int, features: int) -> Tensor:
    """Sines and cosines of the positions of a square grid: (side^2, features), fp32, raster order.

    The first half of the features encodes the column, the second the row, each by `features` / 4
    geometric frequencies from 1 towards 1/10,000 (as in the released code of arXiv 2212.09748).
    """
    quarter = features // 4
    steps = torch.arange(quarter, dtype=torch.float64, device="cpu")
    positions = torch.arange(side, dtype=torch.float64, device="cpu")
    angles = positions[:, None] * 10_000.0 ** (-steps / quarter)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()
