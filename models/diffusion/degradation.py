"""Conditioning augmentation of a cascade (arXiv 2106.15282, 4.3): degrade the low-resolution input.

A super-resolution network is trained on real low-resolution images and used on generated ones;
degrading them in training, and conditioning the network on the level, closes the gap.
"""

import math
from typing import Annotated, Literal, Protocol, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor
from torch.nn import functional as F

from models.nn.random import randn_like


class Degradation(Protocol):
    """Degrades low-resolution images by a level per sample."""

    def levels(self, count: int, rng: Generator) -> Tensor:
        """Levels (count,) for training."""

    def __call__(self, low: Tensor, level: Tensor, rng: Generator) -> Tensor:
        """Images (B, 3, h, w) degraded by levels (B,); level 0 returns them unchanged."""


class GaussianAugmentation(BaseModel, frozen=True, extra="forbid"):
    """Gaussian noise of levels uniform in [0, max_level].

    Level s gives z_s = cos(pi s / 2) z_0 + sin(pi s / 2) noise: the forward process of a cosine
    schedule, run to s ("non-truncated" in the paper).
    """

    kind: Literal["gaussian"] = "gaussian"
    max_level: float = Field(default=0.4, ge=0, le=1)

    def levels(self, count: int, rng: Generator) -> Tensor:
        return self.max_level * torch.rand(count, generator=rng, device=rng.device)

    def __call__(self, low: Tensor, level: Tensor, rng: Generator) -> Tensor:
        angle = (level.to(low.dtype) * (math.pi / 2))[:, None, None, None]
        return angle.cos() * low + angle.sin() * randn_like(low, rng)


class BlurAugmentation(BaseModel, frozen=True, extra="forbid"):
    """Gaussian blur of some of the training images (unCLIP: kernel 3, sigma 0.6).

    Level 1 is blurred, level 0 is not.
    """

    kind: Literal["blur"] = "blur"
    kernel: int = Field(default=3, gt=0)
    sigma: float = Field(default=0.6, gt=0)
    probability: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _centred(self) -> Self:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        return self

    def levels(self, count: int, rng: Generator) -> Tensor:
        uniform = torch.rand(count, generator=rng, device=rng.device)
        return (uniform < self.probability).float()

    def __call__(self, low: Tensor, level: Tensor, rng: Generator) -> Tensor:
        """low + level (blurred - low)."""
        weight = level.to(low.dtype)[:, None, None, None]
        return torch.where(weight > 0, low + weight * (self._blurred(low) - low), low)

    def _blurred(self, low: Tensor) -> Tensor:
        line = gaussian_kernel(self.kernel, self.sigma).to(low)
        kernel = (line[:, None] * line).expand(low.shape[1], 1, self.kernel, self.kernel)
        margin = self.kernel // 2
        padded = F.pad(low, (margin, margin, margin, margin), mode="reflect")
        return F.conv2d(padded, kernel, groups=low.shape[1])


def gaussian_kernel(size: int, sigma: float) -> Tensor:
    """A gaussian sampled at `size` (odd) integer offsets, with sum 1."""
    offsets = torch.arange(size, dtype=torch.float64, device="cpu") - (size - 1) / 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


DegradationConfig = Annotated[GaussianAugmentation | BlurAugmentation, Field(discriminator="kind")]
