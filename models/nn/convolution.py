"""Convolutions that compute less where they can, and residual blocks modulated by a vector."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.nn.cpu.winograd import DOUBLED, convolved, tiles_for


class Convolution3x3(nn.Conv2d):
    """A 3 x 3 convolution of stride 1, padded by 1: by Winograd's way where that is faster."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        basis = tiles_for(x, self.weight)
        if self.bias is not None and basis is not None:
            return convolved(x, self.weight, self.bias, basis)
        if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
            # or the kernel would be reordered twice, forward and backward
            weight = self.weight.contiguous(memory_format=torch.channels_last)
            return F.conv2d(x, weight, self.bias, padding=1)
        return super().forward(x)

    def doubled(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W), every value four times, to (B, outputs, 2 H, 2 W)."""
        if self.bias is not None and DOUBLED.suits(x, self.weight):
            return convolved(x, self.weight, self.bias, DOUBLED)
        return self(F.interpolate(x, scale_factor=2, mode="nearest"))


class Convolution1x1(nn.Conv2d):
    """A 1 x 1 convolution: channels that come last are rows of one product."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
            rows = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
            return rows.permute(0, 3, 1, 2)
        return super().forward(x)


class FiLMResBlock(nn.Module):
    """Two 3x3 convolutions with group norms; a vector scales and shifts between them (FiLM).

    The second convolution starts at 0, so a new block is its skip connection (as in ADM).
    """

    def __init__(self, width: int, vector: int, *, groups: int = 8) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(vector, 2 * width)
        self.norm_out = nn.GroupNorm(groups, width)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        silence(self.conv_out)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """(B, width, H, W) and (B, vector) to (B, width, H, W)."""
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(F.silu(vector))[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm_out(hidden) * (1 + scale) + shift
        return x + self.conv_out(F.silu(hidden))


def silence(layer: nn.Linear | nn.Conv2d) -> None:
    """Set a layer's parameters to 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
