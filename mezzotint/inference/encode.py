"""Shard sets of codes or latents, derived from sets of images with a trained autoencoder."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.derive import (
    Arrays,
    derive,
    derive_journal,
    finished_blocks,
    finished_set,
    measured,
)
from data_pipeline.manifest import Manifest
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import DEVIATIONS, LATENTS
from mezzotint.common.mirrored import mirrored, with_mirrored
from mezzotint.inference.preprocessing import image_config, mirroring, prepared
from mezzotint.inference.process_group import ProcessGroup, Progress
from mezzotint.inference.runtime import Runtime
from models import store
from models.autoencoders.autoencoder import Autoencoder, AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian
from models.autoencoders.dvae import DVAE, DVAEConfig
from models.autoencoders.hierarchical import VQVAE2, VQVAE2Config
from models.finite import named_samples, require_finite


def encoder_size(model: str, *, latents: bool = False) -> int:
    """Side in pixels of the images that an autoencoder's model directory encodes.

    Raises:
        UserError: the model directory holds no autoencoder, or none with the latents asked for.
    """
    config = store.describe(model).config
    if not isinstance(config, AutoencoderConfig | DVAEConfig | VQVAE2Config):
        raise UserError(
            f"{model}: holds a {config.kind}; images are encoded by an autoencoder or dvae"
        )
    if latents and not isinstance(config, AutoencoderConfig):
        raise UserError(
            f"{model}: a {config.kind} has codes and no latents of its own; leave out --latents"
        )
    return config.image_size


def feeding(data: DataConfig, model: str, size: int) -> DataConfig:
    """The data settings with images prepared for the encoder in `model`, which takes `size`.

    Raises:
        UserError: `data.image` states another preprocessing and does not force it, or flips.
    """
    return prepared(data, partial(image_config, model, size))


def encode_set(
    data: DataConfig,
    model: str,
    out: str,
    *,
    batch: int = 64,
    latents: bool = False,
    flip: bool = False,
    device: str | torch.device = "cpu",
    group: ProcessGroup | None = None,
    progress: Progress | None = None,
) -> Manifest | None:
    """Encode every sample of a set with an autoencoder, `batch` at a time, in fp32.

    Image tokens (h, w) int32 where it has a codebook: their array is `codes`; of a VQ-VAE-2 one per
    level, `top`, (`middle`,) `bottom`. Otherwise, or if `latents` are asked for, `latents`
    (C, h, w) float32, not scaled: of a gaussian bottleneck the means, with their standard
    deviations `latent_deviations`. With `flip` the arrays of the mirrored images are kept beside
    them, as `latents_mirrored`. Images are prepared as those of the autoencoder's training were.
    The set written carries the encoder's digest; training refuses
    that of another encoder. A finished set of the same source and encoder is left as it is.

    The main process writes, and the result is the same for any number of processes; None on the
    others. After an interruption the same call goes on after the shards that are written.

    Raises:
        UserError: the model directory holds no autoencoder, or none with the latents asked for;
            `data.image` states another preprocessing than its own.
        NonFiniteError: a sample's arrays are not finite; nothing is left of the new set.
    """
    data = feeding(data, model, encoder_size(model, latents=latents))
    data = mirroring(data) if flip else data
    runtime, dataset = Runtime.of(device, "fp32", group), open_dataset(data)
    digest = store.describe(model).digest
    fields = _fields(model, latents=latents, flip=flip)
    finished = finished_set(dataset, out, digest, fields=fields)
    if finished is not None:
        return measured(out, finished) if runtime.group.is_main else finished
    encode, _ = _encoder(store.load(model, device=runtime.device), latents=latents)
    encode = partial(_of_both, encode) if flip else encode
    journal = derive_journal(dataset, out, fields=fields, encoder=digest)
    done, kept = 0, iter(tuple[Arrays]())
    if runtime.group.is_main:
        done, kept = finished_blocks(journal, dataset, out, fields, batch)
    done = runtime.group.share(done)
    first = done // batch * batch  # of the block that the first missing sample is in
    compute = partial(_encoded, runtime, dataset, encode, first)

    def blocks() -> Iterator[Arrays]:
        yield from kept
        skipped = done - first
        for arrays in runtime.group.map_blocks(compute, len(dataset) - first, batch, progress):
            yield {name: each.numpy()[skipped:] for name, each in arrays.items()}
            skipped = 0

    if runtime.group.is_main:
        return derive(dataset, out, blocks(), fields=fields, encoder=digest, journal=journal)
    for _ in blocks():
        pass
    return None


def _encoded(
    runtime: Runtime,
    dataset: Dataset,
    encode: Callable[[Tensor], Mapping[str, Tensor]],
    first: int,
    numbers: range,
) -> dict[str, Tensor]:
    """The arrays of the samples of these numbers from `first` on, on the CPU."""
    rows = range(first + numbers.start, first + numbers.stop)
    images = dataset.batch(rows).images.to(runtime.device)
    names = [f"{dataset.config.url}: sample '{dataset.entry(row).key}'" for row in rows]
    with runtime.inference(), named_samples(names):
        return {name: each.cpu() for name, each in encode(images).items()}


def _of_both(encode: Callable[[Tensor], Mapping[str, Tensor]], images: Tensor) -> dict[str, Tensor]:
    """The arrays of images (B, 3, H, W) and of the mirrored ones."""
    other = encode(images.flip(3))
    return {**encode(images), **{mirrored(name): each for name, each in other.items()}}


def _fields(model: str, *, latents: bool, flip: bool) -> tuple[str, ...]:
    """The arrays that a model directory's autoencoder gives."""
    with torch.device("meta"):
        found = _encoder(store.describe(model).config.build(), latents=latents)[1]
    return with_mirrored(found) if flip else found


def _encoder(
    model: nn.Module, *, latents: bool
) -> tuple[Callable[[Tensor], Mapping[str, Tensor]], tuple[str, ...]]:
    """What encodes images (B, 3, H, W) in [-1, 1], and the names of its arrays (B, ...)."""
    assert isinstance(model, DVAE | Autoencoder | VQVAE2), "checked with its size"
    fields = tuple(model.vocabularies())
    if isinstance(model, Autoencoder) and (latents or not fields):
        gaussian = isinstance(model.config.bottleneck, Gaussian)

        def encode(images: Tensor) -> Mapping[str, Tensor]:
            arrays = model.latent_arrays(images)
            for name, each in arrays.items():
                require_finite(f"array '{name}' is", each)
            return arrays

        return encode, (LATENTS, DEVIATIONS) if gaussian else (LATENTS,)

    def codes(images: Tensor) -> Mapping[str, Tensor]:
        return {name: each.to(torch.int32) for name, each in model.code_arrays(images).items()}

    return codes, fields
