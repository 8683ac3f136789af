"""Conditioning augmentation of a cascade (arXiv 2106.15282, 4.3): degrade the low-resolution input.

A super-resolution network is trained on real low-resolution images and used on generated ones;
degrading them in training, and conditioning the network on the level, closes the gap.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol, Self

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Generator, Tensor
from torch.nn import functional as F

from models.diffusion.bsr.degrade import NOISE_CHANNELS, NUMBERS, degrade
from models.nn.random import normal, randn_like, uniform


class Degradation(Protocol):
    """Degrades low-resolution images by a level per sample."""

    def levels(self, count: int, rng: Generator) -> Tensor:
        """Levels (count,) for training."""

    def check(self, level: float, *, truncated: bool) -> None:
        """Refuse a level of sampling that no training image had.

        Truncated: the stage before leaves its noise of this level.

        Raises:
            ValueError: with the levels there are.
        """

    def levels_beside(self, level: float, count: int, rng: Generator) -> Tensor:
        """Levels (count,) of the training images that a level of sampling is to be compared with.

        The level itself, or those of training where sampling leaves the augmentation out.
        """

    def __call__(self, low: Tensor, level: Tensor, rng: Generator) -> Tensor:
        """Images (B, 3, h, w) degraded by levels (B,); level 0 returns them unchanged."""


class GaussianAugmentation(BaseModel, frozen=True, extra="forbid"):
    """Gaussian noise of levels uniform in [0, max_level].

    Level s gives z_s = cos(pi s / 2) z_0 + sin(pi s / 2) noise: the forward process of a cosine
    schedule, run to s. In sampling z_0 is a finished image ("non-truncated" in the paper), or z_s
    is where the stage before stops ("truncated"); training is the same.
    """

    kind: Literal["gaussian"] = "gaussian"
    max_level: float = Field(default=0.4, ge=0, le=1)

    def levels(self, count: int, rng: Generator) -> Tensor:
        return self.max_level * torch.rand(count, generator=rng, device=rng.device)

    def check(self, level: float, *, truncated: bool) -> None:
        if level > self.max_level:
            raise ValueError(f"it was trained with levels up to {self.max_level:g}; choose a lower")

    def levels_beside(self, level: float, count: int, rng: Generator) -> Tensor:
        return torch.full((count,), level, device=rng.device)

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

    def check(self, level: float, *, truncated: bool) -> None:
        _check_all_or_nothing(self.kind, level, truncated=truncated)

    def levels_beside(self, level: float, count: int, rng: Generator) -> Tensor:
        return self.levels(count, rng)

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


class BSRAugmentation(BaseModel, frozen=True, extra="forbid"):
    """BSRGAN's shuffled degradation of some of the training images, for upper stages.

    See `models.diffusion.bsr.degrade`. Level 1 is degraded, level 0 is not.
    """

    kind: Literal["bsr"] = "bsr"
    probability: float = Field(default=0.5, ge=0, le=1)
    strength: float = Field(default=1.0, gt=0, le=1)
    """Of blur, resizing, noise and JPEG, as a share of the paper's strongest."""

    def levels(self, count: int, rng: Generator) -> Tensor:
        return (torch.rand(count, generator=rng, device=rng.device) < self.probability).float()

    def check(self, level: float, *, truncated: bool) -> None:
        _check_all_or_nothing(self.kind, level, truncated=truncated)

    def levels_beside(self, level: float, count: int, rng: Generator) -> Tensor:
        return self.levels(count, rng)

    def __call__(self, low: Tensor, level: Tensor, rng: Generator) -> Tensor:
        """low + level (degraded - low)."""
        cpu = torch.device("cpu")
        rows = uniform((len(low), NUMBERS), rng, cpu).tolist()
        noise = normal((len(low), NOISE_CHANNELS, *low.shape[2:]), rng, low.device, low.dtype)
        images = [
            low[index]
            if share == 0
            else torch.lerp(
                low[index], self._degraded(low[index], rows[index], noise[index]), share
            )
            for index, share in enumerate(level.tolist())
        ]
        return torch.stack(images)

    def _degraded(self, image: Tensor, numbers: Sequence[float], noise: Tensor) -> Tensor:
        return (degrade((image + 1) / 2, numbers, noise, self.strength) * 2 - 1).to(image)


def _check_all_or_nothing(kind: str, level: float, *, truncated: bool) -> None:
    if truncated:
        raise ValueError(f"truncated is of gaussian augmentation, not of {kind}; leave it out")
    if level not in (0, 1):
        raise ValueError(f"{kind} is applied (1) or not (0); choose 0, as images are generated")


def gaussian_kernel(size: int, sigma: float) -> Tensor:
    """A gaussian sampled at `size` (odd) integer offsets, with sum 1."""
    offsets = torch.arange(size, dtype=torch.float64, device="cpu") - (size - 1) / 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


DegradationConfig = Annotated[
    GaussianAugmentation | BlurAugmentation | BSRAugmentation, Field(discriminator="kind")
]
