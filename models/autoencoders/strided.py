"""The convolutional pyramid of VQ-VAE (arXiv 1711.00937, 4.1; 1906.00446, A.1)."""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


class StridedPyramid(BaseModel, frozen=True, extra="forbid"):
    """`halvings` convolutions of stride 2, then residual blocks; transposed ones in the decoder.

    `patch` > 1 puts a pixel-unshuffle before the encoder and its inverse after the decoder, which
    makes small networks cheap.
    """

    kind: Literal["strided"] = "strided"
    width: int = Field(default=128, gt=0, multiple_of=2)
    halvings: int = Field(default=2, gt=0)
    blocks: int = Field(default=2, ge=0)
    residual_width: int = Field(default=32, gt=0)
    patch: int = Field(default=1, gt=0)

    @property
    def stride(self) -> int:
        return int(self.patch * 2**self.halvings)

    def encoder(self, outputs: int, image_size: int) -> "StridedEncoder":
        return StridedEncoder(self, 3, outputs)

    def decoder(self, inputs: int, image_size: int) -> "StridedDecoder":
        return StridedDecoder(self, inputs, 3)


class ThinResidual(nn.Module):
    """x + conv1(relu(conv3(relu x))), narrow in between."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(width, inner, 3, padding=1)
        self.conv_out = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) to the same shape."""
        return x + self.conv_out(F.relu(self.conv_in(F.relu(x))))


def residuals(config: StridedPyramid) -> nn.Sequential:
    """The stack of residual blocks."""
    return nn.Sequential(
        *(ThinResidual(config.width, config.residual_width) for _ in range(config.blocks))
    )


class StridedEncoder(nn.Module):
    """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""

    def __init__(self, config: StridedPyramid, inputs: int, outputs: int) -> None:
        super().__init__()
        self.patch = config.patch
        half = config.width // 2
        widths = [inputs * config.patch**2, half, *[config.width] * (config.halvings - 1)]
        if config.halvings == 1:
            widths[-1] = config.width
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.conv = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.residuals = residuals(config)
        self.out = nn.Conv2d(config.width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], or the features of a finer level."""
        x = F.pixel_unshuffle(x.to(self.conv.weight.dtype), self.patch)
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.down:
            x = F.relu(layer(x))
        return self.out(F.relu(self.residuals(self.conv(x))))


class StridedDecoder(nn.Module):
    """(B, inputs, h, w) to (B, outputs, h x stride, w x stride)."""

    def __init__(self, config: StridedPyramid, inputs: int, outputs: int) -> None:
        super().__init__()
        self.patch = config.patch
        self.stem = nn.Conv2d(inputs, config.width, 3, padding=1)
        self.residuals = residuals(config)
        half = config.width // 2
        widths = [*[config.width] * (config.halvings - 1), half]
        if config.halvings == 1:
            widths = [config.width]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            for before, after in pairwise(widths)
        )
        self.out = nn.ConvTranspose2d(widths[-1], outputs * config.patch**2, 4, stride=2, padding=1)

    def features(self, latent: Tensor) -> Tensor:
        """The input of the last layer."""
        latent = latent.to(self.stem.weight.dtype)
        x = self.stem(latent.contiguous(memory_format=torch.channels_last))
        x = F.relu(self.residuals(x))
        for layer in self.up:
            x = F.relu(layer(x))
        return x

    def project(self, features: Tensor) -> Tensor:
        """The last layer, and the inverse of the encoder's pixel-unshuffle."""
        return F.pixel_shuffle(self.out(features), self.patch)

    def forward(self, latent: Tensor) -> Tensor:
        """Both: (B, inputs, h, w) to (B, outputs, H, W)."""
        return self.project(self.features(latent))

    def last_gradient(self, features: Tensor, output: Tensor) -> Tensor:
        """Gradient of the last layer's weight, from that of its output; reads no weight.

        It is the adjoint of a convolution: input and output gradient swap roles.
        """
        output = F.pixel_unshuffle(output.float(), self.patch)
        shape = (features.shape[1], output.shape[1], 4, 4)
        with torch.autocast(features.device.type, enabled=False):
            gradient: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
                output, shape, features.detach().float(), stride=2, padding=1
            )
            return gradient
