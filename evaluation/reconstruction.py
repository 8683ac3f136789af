"""Evaluation of an autoencoder: how well it reconstructs images, and at what rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from data_pipeline.config import ImageConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from evaluation.config import ReconstructionConfig, image_protocol
from evaluation.metrics import fid, psnr, ssim
from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score, bootstrap_mean
from evaluation.result import Evaluated, Metric, Metrics, by_metric
from evaluation.samples import choose
from evaluation.stages import StageProgress, Stages
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.images import to_bytes
from mezzotint.inference.runtime import Runtime
from models import store
from models.autoencoders.autoencoder import Autoencoder
from models.autoencoders.bottleneck import perplexity
from models.autoencoders.dvae import DVAE
from models.autoencoders.hierarchical import VQVAE2
from models.finite import named_samples, require_finite

Model = DVAE | Autoencoder | VQVAE2
GRID = "grid_reconstructions.png"


@dataclass(frozen=True)
class ReconstructionEvaluator:
    """An autoencoder, its images and the feature network, as configured."""

    config: ReconstructionConfig
    model: Model
    dataset: Dataset
    image: ImageConfig
    network: FeatureNetwork | None
    runtime: Runtime

    def evaluate_block(self, indices: Sequence[int], shown: int) -> Mapping[str, Tensor]:
        """Reconstruct one batch: per-image values, features, code counts, and `shown` images."""
        batch, device = self.dataset.batch(list(indices)), self.runtime.device
        images = batch.images.to(device)
        reconstructed = self.model.reconstruct(images)
        codes = self.model.code_arrays(images)
        original, reconstruction = to_bytes(images), to_bytes(reconstructed)
        found = {
            "psnr": psnr.psnr(reconstruction, original),
            "ssim": ssim.ssim(reconstruction, original),
            "original_images": original[:shown],
            "reconstructed_images": reconstruction[:shown],
        }
        if not codes:
            rng = keyed_generator(self.config.seed, "rate", *batch.keys)
            rate = self.model(images, rng).latent.rate
            grid = self.model.grid if isinstance(self.model, Autoencoder) else (0,)
            nats = math.nan if rate is None else float(rate) * math.prod(grid) * len(indices)
            found["nats"] = torch.tensor([nats], dtype=torch.float64, device=device)
        for name, array in codes.items():
            size = self.model.vocabularies()[name]
            found[f"codes/{name}"] = torch.bincount(array.flatten(), minlength=size)[None]
        if self.network is not None:
            with torch.autocast(device.type, enabled=False):
                for name, each in (("original", original), ("reconstruction", reconstruction)):
                    found[name] = self.network.features(each.cpu())
                    require_finite(f"features of its {name} are", found[name])
        return {name: each.cpu() for name, each in found.items()}

    def evaluate_blocks(
        self, chosen: Sequence[int], progress: StageProgress
    ) -> Mapping[str, Tensor]:
        """The arrays of all batches, concatenated; the processes of the group share them."""

        def compute(block: range) -> Mapping[str, Tensor]:
            indices = chosen[block.start : block.stop]
            names = [f"sample '{self.dataset.entry(index).key}'" for index in indices]
            with named_samples(names):
                found = self.evaluate_block(indices, max(self.config.grid_images - block.start, 0))
            progress(block.stop, len(chosen))
            return found

        with self.runtime.inference():
            group = self.runtime.group
            return group.concatenate_blocks(compute, len(chosen), self.config.batch)

    def metrics(self, arrays: Mapping[str, Tensor]) -> Metrics:
        """PSNR, SSIM, Fréchet distance, rate and use of the codebooks."""
        part, seed = self.config.images.part, self.config.seed
        found: dict[str, Mapping[str, Metric]] = {
            name: {part: mean(arrays[name], seed, name)} for name in ("psnr", "ssim")
        }
        if self.network is not None:
            distance = FrechetDistance.between(
                arrays["reconstruction"], fid.fit(arrays["original"])
            )
            found[f"reconstruction_{self.network.metric}"] = {part: distance}
        images, pixels = len(arrays["psnr"]), self.model.image_size**2
        counts = code_counts(arrays)
        if counts:
            found |= codebook_metrics(counts, images, pixels)
        elif not arrays["nats"].isnan().any():
            nats = float(arrays["nats"].sum())
            found["bits_per_pixel"] = {"total": nats / images / math.log(2) / pixels}
        return found

    def protocol(self, arrays: Mapping[str, Tensor]) -> Mapping[str, object]:
        stored, discrete = store.describe(self.config.autoencoder), bool(code_counts(arrays))
        rate = "length of the codes" if discrete else "divergence from the standard normal"
        return {
            "autoencoder": {"kind": stored.config.kind, "digest": stored.digest},
            "images": {
                **self.config.images.model_dump(mode="json", exclude={"cache"}),
                "images": len(arrays["psnr"]),
                **image_protocol(self.image),
                "fingerprint": self.dataset.manifest.fingerprint,
            },
            "psnr": psnr.DEFINITION,
            "ssim": ssim.DEFINITION,
            "latent": "hard codes" if discrete else "without noise",
            "bits_per_pixel": rate,
            "precision": self.runtime.precision_name,
            "seed": self.config.seed,
            "features": self.network and self.network.protocol(),
            "intervals": "95% over images, bootstrap",
        }


def evaluate_reconstruction(
    config: ReconstructionConfig, runtime: Runtime, stages: Stages
) -> Evaluated:
    """Encode and decode images and compare them with the originals.

    Raises:
        UserError: something that is read is missing or does not fit.
    """
    model = read_autoencoder(config.autoencoder, runtime.device)
    network = None if config.features is None else config.features.build(runtime)
    image = config.images.image_config(config.autoencoder, model.image_size)
    dataset = open_dataset(config.images.data_config(config.images.part, image))
    evaluator = ReconstructionEvaluator(config, model, dataset, image, network, runtime)
    chosen = choose(dataset.keys(), config.images.limit, config.seed)
    if len(chosen) < 2:
        raise UserError(f"images: {len(chosen)} were selected; at least 2 are needed")
    with stages("reconstruct") as report:
        arrays = evaluator.evaluate_blocks(chosen, report)
    captions = [dataset.caption(index) for index in chosen[: config.grid_images]]
    write_images = partial(write_grid, config, arrays, captions)
    return Evaluated(evaluator.protocol(arrays), evaluator.metrics(arrays), write_images)


def write_grid(
    config: ReconstructionConfig, arrays: Mapping[str, Tensor], captions: Sequence[str], out: Path
) -> None:
    """`grid_reconstructions.png`: the first images and their reconstructions."""
    pairs = zip(arrays["original_images"], arrays["reconstructed_images"], strict=True)
    cells = [GridCell([pair], caption) for pair, caption in zip(pairs, captions, strict=True)]
    if cells:
        title = f"{config.name}: originals and reconstructions"
        labels = ("real", "reconstructed")
        image_grid(in_columns(cells, 4), title=title, image_labels=labels).save(out / GRID)


def read_autoencoder(directory: str, device: str | torch.device = "cpu") -> Model:
    """The autoencoder of a model directory.

    Raises:
        UserError: it holds another kind of model.
    """
    model: nn.Module = store.load(directory, device=device)
    if not isinstance(model, DVAE | Autoencoder | VQVAE2):
        kind = store.describe(directory).config.kind
        raise UserError(f"autoencoder: {directory} holds a {kind}; name an autoencoder")
    return model


def code_counts(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How often each code is used (K,), by codebook; empty for continuous latents."""
    return {
        name.removeprefix("codes/"): counts.sum(dim=0)
        for name, counts in arrays.items()
        if name.startswith("codes/")
    }


def codebook_metrics(counts_by_name: Mapping[str, Tensor], images: int, pixels: int) -> Metrics:
    """Size, use and rate of every codebook: by the length of the codes, and by their entropy."""
    found: dict[str, dict[str, Metric]] = {}
    total = 0.0
    for name, counts in counts_by_name.items():
        used, positions = float(perplexity(counts)), int(counts.sum()) // images
        bits_per_pixel = math.log2(len(counts)) * positions / pixels
        total += bits_per_pixel
        found[name] = {
            "codebook_size": len(counts),
            "codes_used": int((counts > 0).sum()),
            "code_perplexity": used,
            "code_positions": positions,
            "bits_per_pixel": bits_per_pixel,
            "entropy_bits_per_pixel": math.log2(used) * positions / pixels,
        }
    return by_metric({**found, "total": {"bits_per_pixel": total}})


def mean(values: Tensor, seed: int, label: str) -> Score:
    """Mean over images; equal images have no finite PSNR and count as 100."""
    return bootstrap_mean(values.clamp(max=100.0), keyed_generator(seed, "bootstrap", label))
