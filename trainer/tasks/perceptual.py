"""The choice of a perceptual distance in a recipe."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from mezzotint.common.errors import UserError
from models import store
from models.autoencoders.perceptual import (
    Activations,
    Perceptual,
    RandomNetwork,
    linear_weights,
    load_vgg,
)


class Lpips(BaseModel, frozen=True, extra="forbid"):
    """VGG-16's features, each channel weighted by human judgements (LPIPS 0.1, arXiv 1801.03924).

    `vgg` is torchvision's VGG-16 state dict on disk; `linear` LPIPS' five layers, without which all
    channels count alike.
    """

    kind: Literal["lpips"] = "lpips"
    vgg: str = Field(min_length=1)
    linear: str | None = None
    weight: float = Field(default=1.0, gt=0)

    def build(self) -> Perceptual:
        """The distance.

        Raises:
            UserError: a file is missing or holds other weights.
        """
        channels = None if self.linear is None else linear_weights(self.linear)
        return Perceptual(load_vgg(self.vgg), channels)


class OwnFeatures(BaseModel, frozen=True, extra="forbid"):
    """The encoder's activations of an autoencoder trained before: `model` is its directory."""

    kind: Literal["model"] = "model"
    model: str = Field(min_length=1)
    weight: float = Field(default=1.0, gt=0)

    def build(self) -> Perceptual:
        """The distance.

        Raises:
            UserError: no model directory.
            UserError: a model without an encoder of images.
        """
        encoder = getattr(store.load(self.model), "encoder", None)
        if not isinstance(encoder, nn.Module):
            raise UserError(f"task.perceptual.model: {self.model} has no encoder of images")
        return Perceptual(Activations(encoder), None)


class RandomFeatures(BaseModel, frozen=True, extra="forbid"):
    """A convolutional network of random weights from `seed` and never trained.

    Its architecture alone distinguishes structures (arXiv 2103.10571).
    """

    kind: Literal["random"] = "random"
    seed: int = Field(default=0, ge=0)
    widths: tuple[int, ...] = Field(default=(32, 64, 128), min_length=1)
    weight: float = Field(default=1.0, gt=0)

    def build(self) -> Perceptual:
        return Perceptual(RandomNetwork(self.widths, self.seed), None)


PerceptualConfig = Annotated[Lpips | OwnFeatures | RandomFeatures, Field(discriminator="kind")]


class PerceptualTerm:
    """A weighted perceptual distance; its network is read when it is first needed.

    So a recipe can be checked on a machine that has no copy of the weights.
    """

    def __init__(self, config: PerceptualConfig) -> None:
        self._config = config
        self._distance: Perceptual | None = None

    @property
    def weight(self) -> float:
        return self._config.weight

    def __call__(self, image: Tensor, other: Tensor) -> Tensor:
        """The distance of two batches, a scalar, not yet weighted.

        Raises:
            UserError: the weights cannot be read.
        """
        if self._distance is None:
            with torch.device("cpu"):  # moves to the images at its first call
                self._distance = self._config.build()
        return self._distance(image, other)
