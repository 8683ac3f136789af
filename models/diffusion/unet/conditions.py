"""What a UNet is conditioned on, as settings, and how a caption's features enter it."""

from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.degradation import BlurAugmentation, DegradationConfig


class LowResolutionConfig(BaseModel, frozen=True, extra="forbid"):
    """The network enlarges images of `size` pixels: its input holds them upsampled."""

    size: int = Field(gt=0)
    augmentation: DegradationConfig = BlurAugmentation()
    condition_on_noise_level: bool = False
    """Whether the network gets the degradation level of its input; the published ones do not."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How it is upsampled; bicubic, as Pillow's (a = -0.5), is Karlo's."""


class InpaintingConfig(BaseModel, frozen=True, extra="forbid"):
    """The network's input also holds what is kept of an image, and before it the mask.

    The order of the released inpainting models of latent diffusion. The weights of these channels
    start at 0: a network that goes on from one without them starts as that one.
    """

    mask: bool = True
    """Whether the mask is a channel of its own."""

    def channels(self, image_channels: int) -> int:
        """How many more channels the input has."""
        return image_channels + self.mask


class TextFeaturesConfig(BaseModel, frozen=True, extra="forbid"):
    """Features of captions from a frozen encoder: `Condition.features`."""

    width: int = Field(gt=0)
    projection: int | None = Field(default=None, gt=0)
    """Features of the tokens to which a linear layer and a layer norm bring them, as in Karlo; by
    default attention reads them as they are."""

    @property
    def context(self) -> int:
        """Width of the tokens that attention reads."""
        return self.projection or self.width


def needed(given: Tensor | None, what: str) -> Tensor:
    """A part of a condition.

    Raises:
        UserError: the condition lacks it.
    """
    if given is None:
        raise UserError(f"this unet needs {what}")
    return given


def enlarged(
    image: Tensor, height: int, width: int, interpolation: Literal["bilinear", "bicubic"]
) -> Tensor:
    """(B, C, h, w) at another size."""
    # with antialias, which does nothing else here, the cubic is Pillow's
    return F.interpolate(
        image,
        (height, width),
        mode=interpolation,
        align_corners=False,
        antialias=interpolation == "bicubic",
    )


def with_images(
    x: Tensor,
    condition: Condition,
    low: LowResolutionConfig | None,
    inpainting: InpaintingConfig | None,
) -> Tensor:
    """Noisy x (B, C, H, W), the upsampled low-resolution image, and what inpainting is given.

    Raises:
        UserError: the condition lacks one of them.
    """
    parts, (height, width) = [x], x.shape[2:]
    if low is not None:
        if condition.low_res is None:
            raise UserError("this unet needs a low-resolution image")
        parts.append(enlarged(condition.low_res.to(x.dtype), height, width, low.interpolation))
    if inpainting is not None:
        if condition.mask is None or condition.masked is None:
            raise UserError("this unet inpaints: it needs a mask and what is kept of an image")
        given = [condition.mask] if inpainting.mask else []
        parts += [each.to(x.dtype) for each in (*given, condition.masked)]
    return x if len(parts) == 1 else torch.cat(parts, dim=1)


class FeatureProjection(nn.Module):
    """Linear, layer norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, L, inputs) to (B, L, outputs)."""
        return self.norm(self.linear(features.to(self.linear.weight.dtype)))
