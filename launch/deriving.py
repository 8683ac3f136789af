"""Derive shard sets from other shard sets with a trained encoder."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.derive import derive
from data_pipeline.manifest import Manifest
from launch.errors import LaunchError
from models import store
from models.autoencoders.autoencoder import Autoencoder, AutoencoderConfig
from models.autoencoders.dvae import DVAE, DVAEConfig
from models.autoencoders.hierarchical import VQVAE2, VQVAE2Config

Progress = Callable[[int, int], None]


def encoder_size(model: str) -> int:
    """Side in pixels of the images that an autoencoder's model directory encodes.

    Raises:
        LaunchError: the model directory holds no autoencoder with codes.
    """
    config = store.describe(model).config
    match config:
        case DVAEConfig() | VQVAE2Config():
            return config.image_size
        case AutoencoderConfig() if config.discrete:
            return config.image_size
        case AutoencoderConfig():
            raise LaunchError(f"{model}: its latent is continuous; image tokens need codes")
        case _:
            raise LaunchError(f"{model}: holds a {config.kind}; image tokens need a dvae")


def derive_tokens(
    data: DataConfig, model: str, out: str, batch: int, progress: Progress | None = None
) -> Manifest:
    """Image tokens (h, w) int32 of every sample of a set, by an autoencoder's encoder.

    Their array is `codes`; of a VQ-VAE-2 one per level: `top`, (`middle`,) `bottom`. The set
    written carries the encoder's digest; training refuses tokens of another encoder.

    Raises:
        LaunchError: the model directory holds no autoencoder with codes.
    """
    encoder_size(model)
    described, encoder = store.describe(model), store.load(model)
    assert isinstance(encoder, DVAE | Autoencoder | VQVAE2)

    def encode(part: Batch) -> Mapping[str, np.ndarray]:
        with torch.no_grad():
            arrays = encoder.code_arrays(part.images)
        return {name: codes.to(torch.int32).numpy() for name, codes in arrays.items()}

    return derive(
        open_dataset(data),
        out,
        encode,
        fields=tuple(encoder.vocabularies()),
        encoder=described.digest,
        batch=batch,
        progress=progress,
    )
