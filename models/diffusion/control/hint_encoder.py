"""The encoder of hints, in the layout of the released ControlNet."""

from itertools import pairwise

from pydantic import BaseModel, Field
from torch import Tensor, nn

from models.nn.convolution import zero_module
from models.nn.cpu.dispatch import silu_conv


class HintEncoderConfig(BaseModel, frozen=True, extra="forbid"):
    """The image that controls, and the convolutions that shrink it to the base's size.

    The steps from one width to the next halve, the first ones if there are more than needed. By
    default there are as many as needed, of 16, 32, 96 and 256 features: 8 convolutions for
    `stride` 8, as in the released networks.
    """

    channels: int = Field(default=3, gt=0)
    stride: int = Field(default=1, gt=0)
    """Pixels of the hint per position of the base's first features, each way: a power of 2."""
    widths: tuple[int, ...] | None = Field(default=None, min_length=1)

    @property
    def halvings(self) -> int:
        return self.stride.bit_length() - 1

    @property
    def chosen_widths(self) -> tuple[int, ...]:
        """The widths, where none are set those of the released code."""
        if self.widths is not None:
            return self.widths
        return (16, 32, 96, *(256,) * max(1, self.halvings - 2))[: self.halvings + 1]

    def build(self, outputs: int) -> "HintEncoder":
        return HintEncoder(self, outputs)


class HintEncoder(nn.Module):
    """3x3 convolutions with SiLU between them, the last one 0 (ControlNet's code, cldm.py)."""

    def __init__(self, config: HintEncoderConfig, outputs: int) -> None:
        super().__init__()
        widths = config.chosen_widths
        first = nn.Conv2d(config.channels, widths[0], 3, padding=1)
        layers = [first]
        for number, (width, wider) in enumerate(pairwise(widths)):
            stride = 2 if number < config.halvings else 1
            layers.append(nn.Conv2d(width, width, 3, padding=1))
            layers.append(nn.Conv2d(width, wider, 3, padding=1, stride=stride))
        layers.append(nn.Conv2d(widths[-1], outputs, 3, padding=1))
        zero_module(layers[-1])
        self.layers = nn.ModuleList(layers)

    def forward(self, hint: Tensor) -> Tensor:
        """Hints (B, C, H, W) in [0, 1] to (B, outputs, H / stride, W / stride)."""
        first, *others = self.layers
        hidden = first(hint)
        for layer in others:
            assert isinstance(layer, nn.Conv2d)
            hidden = silu_conv(layer, hidden)
        return hidden
