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
from models.autoencoders.dvae import DVAE, DVAEConfig

Progress = Callable[[int, int], None]


def encoder_size(model: str) -> int:
    """Side in pixels of the images that a dVAE's model directory encodes.

    Raises:
        LaunchError: the model directory holds no dVAE.
    """
    config = store.describe(model).config
    if not isinstance(config, DVAEConfig):
        raise LaunchError(f"{model}: holds a {config.kind}; image tokens need a dvae")
    return config.image_size


def derive_tokens(
    data: DataConfig, model: str, out: str, batch: int, progress: Progress | None = None
) -> Manifest:
    """Image tokens `codes` (h, w) int32 of every sample of a set, by a dVAE's encoder.

    The set written carries the encoder's digest; training refuses tokens of another encoder.

    Raises:
        LaunchError: the model directory holds no dVAE.
    """
    encoder_size(model)
    described, encoder = store.describe(model), store.load(model)
    assert isinstance(encoder, DVAE)

    def encode(part: Batch) -> Mapping[str, np.ndarray]:
        with torch.no_grad():
            return {"codes": encoder.tokens(part.images).to(torch.int32).numpy()}

    return derive(
        open_dataset(data),
        out,
        encode,
        fields=("codes",),
        encoder=described.digest,
        batch=batch,
        progress=progress,
    )
