"""A convolutional super-resolution diffusion network for cascades (arXiv 2106.15282).

Fully convolutional: trained on crops, used at full size.
"""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.common.errors import UserError
from models.checks import require_multiple
from models.diffusion.condition import Condition
from models.diffusion.degradation import DegradationConfig, GaussianAugmentation
from models.diffusion.process import ProcessConfig
from models.nn.convolution import FiLMResBlock, zero_module
from models.nn.embedding import TimestepEmbedding


class SuperResolutionConfig(BaseModel, frozen=True, extra="forbid"):
    """`channels` per resolution, the first at half the image's; `blocks` of each, both ways."""

    kind: Literal["super_resolution"] = "super_resolution"
    low_size: int = Field(gt=0)
    image_size: int = Field(gt=0)
    channels: tuple[int, ...] = Field(default=(64, 128), min_length=1)
    blocks: int = Field(default=2, gt=0)
    process: ProcessConfig = ProcessConfig()
    augmentation: DegradationConfig = GaussianAugmentation()

    @property
    def conditioning(self) -> frozenset[str]:
        return frozenset({"low_resolution"})

    @property
    def factor(self) -> int:
        return self.image_size // self.low_size

    @property
    def stride(self) -> int:
        """Heights and widths must be multiples of it."""
        return int(2 ** len(self.channels))

    @model_validator(mode="after")
    def _consistent(self) -> "SuperResolutionConfig":
        if self.image_size % self.low_size or self.image_size == self.low_size:
            raise ValueError(
                f"image_size {self.image_size} is not a larger multiple of low_size {self.low_size}"
            )
        require_multiple("image_size", self.image_size, "2^len(channels) =", self.stride)
        if any(width <= 0 or width % 8 for width in self.channels):
            raise ValueError("channels must be positive multiples of 8")
        if self.process.prediction_type != "x0" or self.process.variance != "fixed":
            raise ValueError(
                "process.prediction_type must be x0 and process.variance fixed: the output is a "
                "correction of the enlarged input"
            )
        return self

    def build(self) -> "SuperResolution":
        return SuperResolution(self)


class SuperResolution(nn.Module):
    """Predicts x_0 as a correction, zero at first, of the bilinearly enlarged input."""

    def __init__(self, config: SuperResolutionConfig) -> None:
        super().__init__()
        self.config = config
        self.process = config.process.build()
        self.augmentation = config.augmentation
        channels = config.channels
        vector = channels[-1]
        self.time = TimestepEmbedding(vector)
        self.level = TimestepEmbedding(vector)
        self.stem = nn.Conv2d(2 * 3 * 4, channels[0], 3, padding=1)
        self.downs = nn.ModuleList(self._stack(width, vector, config.blocks) for width in channels)
        self.shrinks = nn.ModuleList(
            nn.Conv2d(narrow, wide, 3, stride=2, padding=1) for narrow, wide in pairwise(channels)
        )
        self.joins = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in channels)
        self.ups = nn.ModuleList(self._stack(width, vector, config.blocks) for width in channels)
        self.grows = nn.ModuleList(
            nn.Conv2d(wide, narrow, 3, padding=1) for narrow, wide in pairwise(channels)
        )
        self.norm = nn.GroupNorm(8, channels[0])
        self.out = nn.Conv2d(channels[0], 3 * 4, 3, padding=1)
        zero_module(self.out)

    @staticmethod
    def _stack(width: int, vector: int, blocks: int) -> nn.ModuleList:
        return nn.ModuleList(FiLMResBlock(width, vector) for _ in range(blocks))

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Noisy (B, 3, H, W), times (B,) and the low-resolution input to x_0, in fp32.

        Raises:
            UserError: no low-resolution image or level, or sizes that do not fit.
        """
        if condition.low_res is None or condition.noise_level is None:
            raise UserError("super_resolution needs a low-resolution image and its level")
        height, width = x.shape[2:]
        if height % self.config.stride or width % self.config.stride:
            raise UserError(
                f"super_resolution takes heights and widths that are multiples of "
                f"{self.config.stride}, got {height} x {width}"
            )
        enlarged = F.interpolate(
            condition.low_res.float(), (height, width), mode="bilinear", align_corners=False
        )
        both = F.pixel_unshuffle(torch.cat([x.to(enlarged.dtype), enlarged], dim=1), 2)
        hidden = self.stem(
            both.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        )
        hidden = self._levels(hidden, self.time(t) + self.level(condition.noise_level))
        correction = F.pixel_shuffle(self.out(F.silu(self.norm(hidden))).float(), 2)
        return enlarged + correction

    def _levels(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """Down through all resolutions and up again."""
        kept: list[Tensor] = []
        last = len(self.downs) - 1
        for index, stack in enumerate(self.downs):
            for block in stack.children():
                hidden = block(hidden, vector)
            kept.append(hidden)
            if index < last:
                hidden = self.shrinks[index](hidden)
        for index in range(last, -1, -1):
            hidden = self.joins[index](torch.cat([hidden, kept[index]], dim=1))
            for block in self.ups[index].children():
                hidden = block(hidden, vector)
            if index > 0:
                enlarged = F.interpolate(hidden, scale_factor=2, mode="nearest")
                hidden = self.grows[index - 1](enlarged)
        return hidden
