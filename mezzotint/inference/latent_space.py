"""The arrays that a diffusion model generates, as images: pixels themselves, or latents."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from mezzotint.inference.model_directory import read_model
from mezzotint.inference.preprocessing import require_equal_preprocessing
from models import store
from models.autoencoders.autoencoder import Autoencoder
from models.autoencoders.latent_space import LatentSpace
from models.diffusion.network import ConditionalNetwork, NetworkConfig
from models.first_stage import FirstStage


class PixelConfig(NetworkConfig, Protocol):
    """Settings of a network that generates images by itself."""

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""


@runtime_checkable
class PixelDiffusionModel(ConditionalNetwork, Protocol):
    """A network that generates images by itself."""

    @property
    def config(self) -> PixelConfig:
        """Its settings."""


@runtime_checkable
class ChannelsConfig(Protocol):
    """Settings of a network that may denoise something else than images."""

    @property
    def image_channels(self) -> int:
        """3 for images."""


class ImageSpace(Protocol):
    """Between images (B, 3, H, W) in [-1, 1] and the arrays that are diffused."""

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one array."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to arrays (B, C, h, w)."""

    def decode(self, x: Tensor) -> Tensor:
        """Arrays (B, C, h, w) to images (B, 3, H, W) in [-1, 1]."""

    def shown(self, x: Tensor) -> Tensor:
        """Noisy arrays (B, C, h, w) as images (B, 3, H, W), for a trajectory."""


@dataclass(frozen=True)
class PixelSpace:
    """Images are diffused as they are."""

    image_size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return 3, self.image_size, self.image_size

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1)

    def shown(self, x: Tensor) -> Tensor:
        return x


def recorded_first_stage(model: str) -> FirstStage:
    """The first stage that a model directory records.

    Raises:
        UserError: it records none.
    """
    found = store.describe(model).first_stage
    if found is None:
        raise UserError(
            f"{model}: its {store.CONFIG} records no first_stage, so it is no latent diffusion "
            "model; train it with task.target.kind latents"
        )
    return found


def read_latent_space(
    model: str, first_stage: str | None, device: torch.device, *, force: bool = False
) -> LatentSpace:
    """The latent space of a model directory; `first_stage` is another place of the same one.

    `force` lets both be trained on images that were prepared differently.

    Raises:
        UserError: the model records no first stage, or it is missing, damaged or another one.
    """
    recorded = recorded_first_stage(model)
    where = first_stage or recorded.model
    try:
        digest = store.describe(where).digest
    except UserError as error:
        raise UserError(
            f"{model}: its first stage cannot be read ({error}); name where it is now with "
            "--first-stage (system.first_stage)"
        ) from error
    if digest != recorded.digest:
        raise UserError(
            f"system.first_stage: {where} is another first stage than {model} was trained on "
            f"(digest {digest[:12]}, expected {recorded.digest[:12]}); name the right one with "
            "--first-stage"
        )
    require_equal_preprocessing({"model": model, "first_stage": where}, force=force)
    autoencoder = read_model(where, Autoencoder, "first_stage", device)
    return LatentSpace(autoencoder, recorded.scaling)


def check_generates_alone(
    network: PixelDiffusionModel, directory: str, latents: LatentSpace | None = None
) -> None:
    """Refuse a network that does not generate images by itself, or latents of the first stage.

    Raises:
        UserError: it upsamples images, generates latents without a first stage, or other latents.
    """
    config = network.config
    channels = config.image_channels if isinstance(config, ChannelsConfig) else 3
    if "low_resolution" in config.conditioning:
        raise UserError(f"{directory}: upsamples images: it is the second stage of a cascade")
    if latents is not None:
        found = (channels, config.image_size, config.image_size)
        if found != latents.shape:
            raise UserError(
                f"{directory}: generates arrays of shape {found}, and latents of its first stage "
                f"have shape {latents.shape}"
            )
    elif channels != 3:
        raise UserError(f"{directory}: generates latents, not images")
