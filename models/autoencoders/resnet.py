"""The residual pyramid of VQ-GAN and latent diffusion (arXiv 2012.09841, A; 2112.10752, E.1).

Two convolutions a block, group norms, self-attention at chosen sizes and in the middle. It computes
what taming-transformers and latent-diffusion compute; `taming_weights` renames theirs.
"""

from typing import Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from models.nn.cpu.dispatch import attention


class ResnetPyramid(BaseModel, frozen=True, extra="forbid"):
    """Level i is width x multipliers[i] wide; the resolution halves between levels.

    `attention` lists the sides, in positions, at which every block is followed by self-attention.
    The middle always has it. `patch` > 1 puts a pixel-unshuffle before the encoder and its inverse
    after the decoder, which makes small networks cheap; 1 is the published network.
    """

    kind: Literal["resnet"] = "resnet"
    width: int = Field(default=128, gt=0)
    multipliers: tuple[int, ...] = Field(default=(1, 2, 4, 4), min_length=1)
    blocks: int = Field(default=2, gt=0)
    attention: tuple[int, ...] = ()
    groups: int = Field(default=32, gt=0)
    patch: int = Field(default=1, gt=0)

    @property
    def stride(self) -> int:
        return int(self.patch * 2 ** (len(self.multipliers) - 1))

    @model_validator(mode="after")
    def _groups_divide(self) -> "ResnetPyramid":
        if self.width % self.groups or min(self.multipliers) < 1:
            raise ValueError(f"width {self.width} is not a multiple of groups {self.groups}")
        return self

    def encoder(self, outputs: int, image_size: int) -> "ResnetEncoder":
        return ResnetEncoder(self, outputs, image_size)

    def decoder(self, inputs: int, image_size: int) -> "ResnetDecoder":
        return ResnetDecoder(self, inputs, image_size)


class ResidualBlock(nn.Module):
    """skip(x) + conv(silu(norm(conv(silu(norm x)))))."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_out = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        hidden = self.conv_in(F.silu(self.norm_in(x)))
        return self.skip(x) + self.conv_out(F.silu(self.norm_out(hidden)))


class SpatialAttention(nn.Module):
    """x + one head of self-attention over all positions of a normalised map."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)
        query, key, value = tokens.unsqueeze(1).chunk(3, dim=-1)
        mixed = attention(query, key, value, causal=False)
        return x + self.out(mixed.squeeze(1).transpose(1, 2).reshape(x.shape))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first = ResidualBlock(width, width, groups)
        self.attention = SpatialAttention(width, groups)
        self.second = ResidualBlock(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same shape."""
        return self.second(self.attention(self.first(x)))


class Stage(nn.Module):
    """The blocks of one resolution, and the resampling to the next."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        groups: int,
        *,
        attends: bool,
        resample: nn.Module,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(inputs if index == 0 else outputs, outputs, groups)
            for index in range(blocks)
        )
        self.attentions = nn.ModuleList(
            SpatialAttention(outputs, groups) if attends else nn.Identity() for _ in range(blocks)
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H', W')."""
        for block, attend in zip(self.blocks, self.attentions, strict=True):
            x = attend(block(x))
        return self.resample(x)


class Downsample(nn.Module):
    """Halve the resolution: a 3x3 convolution of stride 2, padded on the right and below."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to (B, width, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution by nearest neighbours, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to (B, width, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ResnetEncoder(nn.Module):
    """Image to features of the latent's resolution."""

    def __init__(self, config: ResnetPyramid, outputs: int, image_size: int) -> None:
        super().__init__()
        widths = [config.width * factor for factor in config.multipliers]
        last = len(widths) - 1
        self.patch = config.patch
        self.stem = nn.Conv2d(3 * config.patch**2, config.width, 3, padding=1)
        self.stages = nn.ModuleList(
            Stage(
                widths[max(level - 1, 0)] if level else config.width,
                width,
                config.blocks,
                config.groups,
                attends=image_size // config.patch // 2**level in config.attention,
                resample=Downsample(width) if level < last else nn.Identity(),
            )
            for level, width in enumerate(widths)
        )
        self.middle = Middle(widths[-1], config.groups)
        self.norm = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, outputs, h, w)."""
        pixels = F.pixel_unshuffle(image.to(self.stem.weight.dtype), self.patch)
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            x = stage(x)
        return self.out(F.silu(self.norm(self.middle(x))))


class ResnetDecoder(nn.Module):
    """Features of the latent's resolution to an image; one block a level more than the encoder."""

    def __init__(self, config: ResnetPyramid, inputs: int, image_size: int) -> None:
        super().__init__()
        widths = [config.width * factor for factor in config.multipliers][::-1]
        last = len(widths) - 1
        self.patch = config.patch
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], config.groups)
        self.stages = nn.ModuleList(
            Stage(
                widths[max(level - 1, 0)],
                width,
                config.blocks + 1,
                config.groups,
                attends=image_size // config.patch // 2 ** (last - level) in config.attention,
                resample=Upsample(width) if level < last else nn.Identity(),
            )
            for level, width in enumerate(widths)
        )
        self.norm = nn.GroupNorm(config.groups, widths[-1], eps=1e-6)
        self.out = nn.Conv2d(widths[-1], 3 * config.patch**2, 3, padding=1)

    def features(self, latent: Tensor) -> Tensor:
        """(B, inputs, h, w) to the input of the last layer, (B, width, H, W)."""
        latent = latent.to(self.stem.weight.dtype)
        x = self.middle(self.stem(latent.contiguous(memory_format=torch.channels_last)))
        for stage in self.stages:
            x = stage(x)
        return F.silu(self.norm(x))

    def project(self, features: Tensor) -> Tensor:
        """The last layer, and the inverse of the encoder's pixel-unshuffle: (B, 3, H, W)."""
        return F.pixel_shuffle(self.out(features), self.patch)

    def last_gradient(self, features: Tensor, output: Tensor) -> Tensor:
        """Gradient of the last layer's weight, from that of its output; reads no weight."""
        output = F.pixel_unshuffle(output, self.patch)
        return convolution_gradient(features, (output.shape[1], features.shape[1], 3, 3), output)


def convolution_gradient(features: Tensor, shape: tuple[int, ...], output: Tensor) -> Tensor:
    """Gradient of a "same" convolution's weight of `shape`, in fp32.

    From the layer's input (B, C, H, W) and the gradient of its output (B, O, H, W). The weight
    itself, which ZeRO-3 may have partitioned, is not needed.
    """
    with torch.autocast(features.device.type, enabled=False):
        gradient: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            features.detach().float(), shape, output.float(), padding=shape[-1] // 2
        )
        return gradient
