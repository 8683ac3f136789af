"""Evaluation of a prior of CLIP image embeddings: how near it comes to the embeddings of images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from evaluation import reference, samples
from evaluation.config import EmbeddingPriorConfig, image_protocol
from evaluation.metrics.intervals import bootstrap_mean, proportion
from evaluation.reference import Reference
from evaluation.result import Evaluated, Metrics
from evaluation.stages import StageProgress, Stages
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.preprocessing import image_model
from mezzotint.inference.runtime import Runtime
from mezzotint.inference.unclip.generator import UnclipGenerator
from models.diffusion.sampling import NFE
from models.nn.random import BatchGenerator


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors (N, D): of the prior and of the captions, and (M, D) of all images."""

    prior: Tensor
    captions: Tensor
    images: Tensor
    rows: tuple[int, ...]
    """Of the N captions among the M images."""


def evaluate_embedding_prior(
    config: EmbeddingPriorConfig, runtime: Runtime, stages: Stages
) -> Evaluated:
    """Generate embeddings from held-out captions, and compare them with those of the images.

    Raises:
        UserError: something that is read is missing or does not fit, or the system has no prior.
    """
    if config.system.prior is None:
        raise UserError("system.prior: this evaluation is of a prior; name its model directory")
    system = UnclipGenerator.load(config.system, runtime)
    fp32 = replace(runtime, bf16=False)
    with stages("reference") as report:
        image = config.reference.image_config(image_model(config.system), system.decoder.image_size)
        real = reference.load(config.reference, image, report)
    held_out = real.indices(real.held_out)
    chosen = samples.choose([real.keys[index] for index in held_out], config.limit, config.seed)
    rows = tuple(held_out[index] for index in chosen)
    captions = [real.captions[index] for index in rows]
    with stages("prior") as report:
        generated = prior_embeddings(system, config, real, rows, report)
    with stages("clip"):
        images = fp32.in_blocks(system.clip.images, real.images, size=128)
        texts = fp32.in_blocks(system.clip.texts, captions, size=256, item_name="caption")
    return Evaluated(
        protocol={
            "system": system.protocol(),
            "seed": config.seed,
            "batch": config.batch,
            "captions": len(rows),
            "reference": {
                "split": real.held_out,
                "fingerprint": real.fingerprint,
                "images": len(real.keys),
                **image_protocol(image),
            },
            "nearest_image": "largest cosine among the images of the split, held-out and training; "
            "of pixel-identical ones any counts",
            "intervals": "95% over captions; Wilson for proportions, bootstrap for means",
        },
        metrics=embedding_metrics(Embeddings(generated, texts, images, rows), real, config.seed),
        write_images=no_images,
    )


def prior_embeddings(
    system: UnclipGenerator,
    config: EmbeddingPriorConfig,
    real: Reference,
    rows: tuple[int, ...],
    progress: StageProgress,
) -> Tensor:
    """Unit vectors (N, D) that the prior generates from the captions of `rows`, keyed by image."""
    prior, runtime = system.prior, system.runtime
    assert prior is not None, "the caller has checked it"

    def compute(block: range) -> Mapping[str, Tensor]:
        chosen = rows[block.start : block.stop]
        rng = BatchGenerator.of(
            [keyed_generator(config.seed, "embedding", real.keys[row]) for row in chosen]
        )
        found = prior.sample(
            [real.captions[row] for row in chosen], config.system.prior_sampling, rng, NFE()
        )
        progress(block.stop, len(rows))
        return {"embedding": F.normalize(found.float(), dim=1).cpu()}

    with runtime.inference():
        return runtime.group.concatenate_blocks(compute, len(rows), config.batch)["embedding"]


def embedding_metrics(found: Embeddings, real: Reference, seed: int) -> Metrics:
    """Cosines of both kinds of embeddings with those of the images, and their difference.

    Both are also looked up among all images.
    """
    rng = partial(keyed_generator, seed, "embedding_prior")
    own = found.images[list(found.rows)]
    cosines = {
        "prior": (found.prior * own).sum(dim=1),
        "caption": (found.captions * own).sum(dim=1),
    }
    gain = cosines["prior"] - cosines["caption"]
    identical = real.captions_of_identical_images()

    def nearest(vectors: Tensor) -> list[float]:
        indices = (vectors @ found.images.T).argmax(dim=1).tolist()
        return [
            float(real.captions[index] in identical[row])
            for index, row in zip(indices, found.rows, strict=True)
        ]

    return {
        "cosine_with_image": {
            name: bootstrap_mean(values, rng(name)) for name, values in cosines.items()
        },
        "cosine_gain": {"prior over caption": bootstrap_mean(gain, rng("gain"))},
        "nearer_than_caption": {"prior": proportion((gain > 0).double().tolist())},
        "nearest_image": {
            "prior": proportion(nearest(found.prior)),
            "caption": proportion(nearest(found.captions)),
        },
        "cosine_with_caption": {
            "prior": bootstrap_mean((found.prior * found.captions).sum(dim=1), rng("similarity")),
            "image": bootstrap_mean(cosines["caption"], rng("own similarity")),
        },
    }


def no_images(out: Path) -> None:
    """This evaluation has no images to write."""
