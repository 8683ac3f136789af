"""Derive shard sets from other shard sets with a trained encoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.derive import derive
from data_pipeline.manifest import Manifest
from mezzotint.common.errors import UserError
from models import store
from models.autoencoders.autoencoder import Autoencoder, AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian
from models.autoencoders.dvae import DVAE, DVAEConfig
from models.autoencoders.hierarchical import VQVAE2, VQVAE2Config

Progress = Callable[[int, int], None]
LATENTS, DEVIATIONS = "latents", "latent_deviations"
MEASURED = 1024
"""Samples that the spread of latents is measured on."""


def encoder_size(model: str, *, latents: bool = False) -> int:
    """Side in pixels of the images that an autoencoder's model directory encodes.

    Raises:
        UserError: the model directory holds no autoencoder, or none with the latents asked for.
    """
    config = store.describe(model).config
    match config:
        case AutoencoderConfig():
            return config.image_size
        case DVAEConfig() | VQVAE2Config() if latents:
            raise UserError(
                f"{model}: a {config.kind} has codes and no latents of its own; leave out --latents"
            )
        case DVAEConfig() | VQVAE2Config():
            return config.image_size
        case _:
            raise UserError(
                f"{model}: holds a {config.kind}; pictures are encoded by an autoencoder or dvae"
            )


def derive_with(
    data: DataConfig,
    model: str,
    out: str,
    batch: int,
    progress: Progress | None = None,
    *,
    latents: bool = False,
) -> Manifest:
    """What an autoencoder's encoder makes of every sample of a set.

    Image tokens (h, w) int32 where it has a codebook: their array is `codes`; of a VQ-VAE-2 one per
    level, `top`, (`middle`,) `bottom`. Otherwise, or if `latents` are asked for, `latents`
    (C, h, w) float32, not scaled: of a gaussian bottleneck the means, with their standard
    deviations `latent_deviations`. The set written carries the encoder's digest; training refuses
    what another encoder made.

    Raises:
        UserError: the model directory holds no autoencoder, or none with the latents asked for.
    """
    encoder_size(model, latents=latents)
    described, encoder = store.describe(model), store.load(model)
    assert isinstance(encoder, DVAE | Autoencoder | VQVAE2)
    fields = tuple(encoder.vocabularies())
    continuous = None
    if isinstance(encoder, Autoencoder) and (latents or not fields):
        continuous = encoder
        gaussian = isinstance(encoder.config.bottleneck, Gaussian)
        fields = (LATENTS, DEVIATIONS) if gaussian else (LATENTS,)

    @torch.no_grad()
    def encode(part: Batch) -> Mapping[str, np.ndarray]:
        if continuous is not None:
            found = continuous.latent_arrays(part.images)
            return {name: each.numpy() for name, each in found.items()}
        arrays = encoder.code_arrays(part.images)
        return {name: codes.to(torch.int32).numpy() for name, codes in arrays.items()}

    return derive(
        open_dataset(data),
        out,
        encode,
        fields=fields,
        encoder=described.digest,
        batch=batch,
        progress=progress,
    )


@dataclass(frozen=True)
class Spread:
    """Of latents as training draws them, over all their numbers."""

    mean: float
    deviation: float

    @property
    def scale(self) -> float:
        """What makes the deviation 1, as latent diffusion scales (arXiv 2112.10752)."""
        return 1 / self.deviation


def spread(url: str, manifest: Manifest) -> Spread | None:
    """Mean and deviation of a set's latents, from its first samples; None if it holds others."""
    found = tuple(name for name in (LATENTS, DEVIATIONS) if f"{name}.npy" in manifest.fields)
    if LATENTS not in found:
        return None
    dataset = open_dataset(DataConfig(url=url, arrays=found))
    batch = dataset.batch(range(min(MEASURED, len(dataset))))
    means = batch.array(LATENTS).double()
    variance = means.var(correction=0)
    if DEVIATIONS in found:
        variance = variance + batch.array(DEVIATIONS).double().square().mean()
    return Spread(float(means.mean()), float(variance.sqrt()))
