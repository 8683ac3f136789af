"""A discriminator of overlapping patches (PatchGAN, arXiv 1611.07004, 3.2.2)."""

from typing import Literal

from pydantic import BaseModel, Field
from torch import Tensor, nn


class PatchDiscriminatorConfig(BaseModel, frozen=True, extra="forbid"):
    """`layers` convolutions of stride 2, from `width` to at most 8 x `width` channels."""

    kind: Literal["patch_discriminator"] = "patch_discriminator"
    width: int = Field(default=64, gt=0, multiple_of=8)
    layers: int = Field(default=3, gt=0)

    def build(self) -> "PatchDiscriminator":
        return PatchDiscriminator(self)


class PatchDiscriminator(nn.Module):
    """Logits of patches, high for real.

    Group norm replaces the paper's batch norm: a logit then depends on its own image only, and
    processes need not exchange statistics.
    """

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [
            nn.Conv2d(3, config.width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        inputs = config.width
        for index in range(1, config.layers + 1):
            outputs = config.width * min(2**index, 8)
            stride = 2 if index < config.layers else 1
            layers += [
                nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, outputs),
                nn.LeakyReLU(0.2),
            ]
            inputs = outputs
        layers.append(nn.Conv2d(inputs, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, 1, h, w) in fp32."""
        first = self.layers[0]
        assert isinstance(first, nn.Conv2d)
        return self.layers(image.to(first.weight.dtype)).float()
