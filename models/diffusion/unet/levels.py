"""The resolutions of a convolutional network, as settings."""

from typing import Self

from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, model_validator

from models.checks import require_multiple


class LevelsConfig(BaseModel, frozen=True, extra="forbid"):
    """What UNet and noisy classifier have in common; the defaults are ADM's (arXiv 2105.05233, 3).

    Level i has `channels` x `multipliers[i]` features at `image_size` / 2^i pixels, and `depth`
    residual blocks.
    """

    image_size: int = Field(gt=0)
    image_channels: int = Field(default=3, gt=0)
    """3 for images, those of the first stage for latents."""
    channels: int = Field(default=128, gt=0, multiple_of=2)
    multipliers: tuple[PositiveFloat, ...] = Field(default=(1, 2, 3, 4), min_length=1)
    depth: int = Field(default=2, gt=0)
    attention: tuple[PositiveInt, ...] = (32, 16, 8)
    """Sides, in pixels, of the levels with attention."""
    head_width: int = Field(default=64, gt=0)
    groups: int = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of each level."""
        return tuple(int(self.channels * multiplier) for multiplier in self.multipliers)

    @property
    def stride(self) -> int:
        """Heights and widths must be multiples of it."""
        return int(2 ** (len(self.multipliers) - 1))

    def attends(self, level: int) -> bool:
        """Whether the blocks of a level have attention."""
        return self.image_size / 2**level in self.attention

    @property
    def head_divisor(self) -> int:
        """The features of every attention must be a multiple of it."""
        return self.head_width

    @model_validator(mode="after")
    def _consistent_levels(self) -> Self:
        stride = "2^(len(multipliers) - 1) ="
        require_multiple("image_size", self.image_size, stride, self.stride)
        sides = [self.image_size // 2**level for level in range(len(self.multipliers))]
        for side in self.attention:
            if side not in sides:
                raise ValueError(f"attention {side}: the levels have sides {sides}")
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"a level of {width} features is not a multiple of groups")
        attending = [width for level, width in enumerate(self.widths) if self.attends(level)]
        for width in [*attending, self.widths[-1]]:
            if width % self.head_divisor:
                raise ValueError(f"{width} features cannot be shared by the attention's heads")
        return self
