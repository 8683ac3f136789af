"""Residual blocks modulated by a vector."""

from torch import Tensor, nn
from torch.nn import functional as F

from models.nn import initialization


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
        zero_module(self.conv_out)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """(B, width, H, W) and (B, vector) to (B, width, H, W)."""
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(F.silu(vector))[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm_out(hidden) * (1 + scale) + shift
        return x + self.conv_out(F.silu(hidden))


def zero_module(layer: nn.Linear | nn.Conv2d) -> None:
    """Set a layer's parameters to 0."""
    for parameter in layer.parameters():
        initialization.constant(parameter, 0.0)
