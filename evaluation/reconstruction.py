"""Evaluation of an autoencoder: how well it reconstructs images, and at what rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from evaluation.config import ReconstructedImages, ReconstructionConfig
from evaluation.metrics import fid, psnr, ssim
from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score, bootstrap_mean
from evaluation.result import EvaluationResult, Metric, Metrics
from evaluation.samples import choose
from evaluation.stages import Progress, Stages
from mezzotint.common.errors import UserError
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.images import to_bytes
from mezzotint.inference.runtime import Runtime
from models import store
from models.autoencoders.autoencoder import Autoencoder
from models.autoencoders.bottleneck import perplexity
from models.autoencoders.dvae import DVAE
from models.autoencoders.hierarchical import VQVAE2

Model = DVAE | Autoencoder | VQVAE2
GRID = "grid_reconstructions.png"


@dataclass
class Accumulator:
    """Per-image values and code counts, summed up batch by batch."""

    psnr: list[Tensor] = field(default_factory=list)
    ssim: list[Tensor] = field(default_factory=list)
    originals: list[Tensor] = field(default_factory=list)
    """Features of the originals."""
    reconstructions: list[Tensor] = field(default_factory=list)
    counts: dict[str, Tensor] = field(default_factory=dict)
    """Uses of every code, by codebook."""
    nats: float = 0.0
    """KL divergence of continuous latents from their prior, summed over images."""
    images: int = 0
    cells: list[GridCell] = field(default_factory=list)


@dataclass(frozen=True)
class ReconstructionEvaluator:
    """An autoencoder, its images and the feature network, as configured."""

    config: ReconstructionConfig
    model: Model
    dataset: Dataset
    network: FeatureNetwork | None
    runtime: Runtime

    @torch.inference_mode()
    def update(self, totals: Accumulator, indices: Sequence[int]) -> None:
        """Reconstruct one batch and add it to the totals."""
        batch = self.dataset.batch(list(indices))
        images = batch.images
        with self.runtime.autocast():
            reconstructed = self.model.reconstruct(images)
            arrays = self.model.code_arrays(images)
            if not arrays:
                rng = keyed_generator(self.config.seed, "rate", *batch.keys)
                rate = self.model(images, rng).latent.rate
                grid = self.model.grid if isinstance(self.model, Autoencoder) else (0,)
                nats = math.nan if rate is None else float(rate) * math.prod(grid)
                totals.nats += nats * len(indices)
        for name, codes in arrays.items():
            size = self.model.vocabularies()[name]
            counts = torch.bincount(codes.flatten(), minlength=size).cpu()
            totals.counts[name] = totals.counts.get(name, torch.zeros_like(counts)) + counts
        original, reconstruction = to_bytes(images), to_bytes(reconstructed)
        totals.images += len(indices)
        totals.psnr.append(psnr.psnr(reconstruction, original))
        totals.ssim.append(ssim.ssim(reconstruction, original))
        if self.network is not None:
            totals.originals.append(self.network(original))
            totals.reconstructions.append(self.network(reconstruction))
        left = max(self.config.grid_images - len(totals.cells), 0)
        pairs = zip(batch.captions, original, reconstruction, strict=True)
        totals.cells += [
            GridCell([[real.clone(), back.clone()]], caption)
            for caption, real, back in list(pairs)[:left]
        ]

    def metrics(self, totals: Accumulator) -> Metrics:
        """PSNR, SSIM, Fréchet distance, rate and use of the codebooks."""
        part, seed = self.config.images.part, self.config.seed
        found: dict[str, Mapping[str, Metric]] = {
            "psnr": {part: mean(torch.cat(totals.psnr), seed, "psnr")},
            "ssim": {part: mean(torch.cat(totals.ssim), seed, "ssim")},
        }
        if self.network is not None:
            originals = fid.fit(torch.cat(totals.originals))
            distance = FrechetDistance.between(torch.cat(totals.reconstructions), originals)
            found[f"reconstruction_{self.network.metric}"] = {part: distance}
        pixels = self.model.image_size**2
        if totals.counts:
            found |= codebook_metrics(totals, pixels)
        elif not math.isnan(totals.nats):
            found["bits_per_pixel"] = {"total": totals.nats / totals.images / math.log(2) / pixels}
        return found

    def protocol(self, totals: Accumulator) -> Mapping[str, object]:
        """What is needed to compute the same metrics."""
        stored = store.describe(self.config.autoencoder)
        rate = "length of the codes" if totals.counts else "divergence from the standard normal"
        return {
            "autoencoder": {"kind": stored.config.kind, "digest": stored.digest},
            "images": {
                **self.config.images.model_dump(mode="json", exclude={"cache"}),
                "images": totals.images,
                "image_size": self.model.image_size,
                "fingerprint": self.dataset.manifest.fingerprint,
            },
            "psnr": psnr.DEFINITION,
            "ssim": ssim.DEFINITION,
            "latent": "hard codes" if totals.counts else "without noise",
            "bits_per_pixel": rate,
            "precision": self.runtime.precision_name,
            "seed": self.config.seed,
            "features": None
            if self.network is None
            else {"metric": self.network.metric, **self.network.protocol()},
            "intervals": "95% over images, bootstrap",
        }


def evaluate_reconstruction(
    config: ReconstructionConfig, out: str | Path, progress: Progress | None = None
) -> EvaluationResult:
    """Encode and decode images and compare them with the originals.

    Writes `grid_reconstructions.png`, `report.md` and `evaluation.json` into `out`.

    Raises:
        UserError: something that is read is missing or does not fit.
    """
    stages = Stages(progress)
    model = read_autoencoder(config.autoencoder)
    evaluator = ReconstructionEvaluator(
        config=config,
        model=model,
        dataset=open_images(config.images, model.image_size),
        network=None if config.features is None else config.features.build(),
        runtime=Runtime.of(precision=config.precision),
    )
    chosen = choose(evaluator.dataset.keys(), config.images.limit, config.seed)
    if len(chosen) < 2:
        raise UserError(f"images: {len(chosen)} were selected; at least 2 are needed")
    totals = Accumulator()
    with stages("reconstruct") as report:
        for first in range(0, len(chosen), config.batch):
            batch = chosen[first : first + config.batch]
            evaluator.update(totals, batch)
            report(first + len(batch), len(chosen))
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    if totals.cells:
        grid = image_grid(
            in_columns(totals.cells, 4),
            title=f"{config.name}: originals and reconstructions",
            image_labels=("real", "reconstructed"),
        )
        grid.save(directory / GRID)
    result = EvaluationResult(
        kind=config.kind,
        name=config.name,
        protocol=evaluator.protocol(totals),
        metrics=evaluator.metrics(totals),
        seconds=stages.seconds,
    )
    result.write(directory)
    return result


def read_autoencoder(directory: str) -> Model:
    """The autoencoder of a model directory.

    Raises:
        UserError: it holds another kind of model.
    """
    model: nn.Module = store.load(directory)
    if not isinstance(model, DVAE | Autoencoder | VQVAE2):
        kind = store.describe(directory).config.kind
        raise UserError(f"autoencoder: {directory} holds a {kind}; name an autoencoder")
    return model


def open_images(config: ReconstructedImages, image_size: int) -> Dataset:
    """The selected images at the autoencoder's size."""
    return open_dataset(config.data_config(config.part, image_size))


def codebook_metrics(totals: Accumulator, pixels: int) -> dict[str, Mapping[str, Metric]]:
    """Size, use and rate of every codebook; the rate without a model of the codes, and with one
    of their frequencies alone.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, counts in totals.counts.items():
        used = float(perplexity(counts))
        positions = int(counts.sum()) // totals.images
        for metric, value in {
            "codebook_size": len(counts),
            "codes_used": int((counts > 0).sum()),
            "code_perplexity": used,
            "code_positions": positions,
            "bits_per_pixel": math.log2(len(counts)) * positions / pixels,
            "entropy_bits_per_pixel": math.log2(used) * positions / pixels,
        }.items():
            rows.setdefault(metric, {})[name] = value
    rows["bits_per_pixel"]["total"] = sum(rows["bits_per_pixel"].values())
    return dict(rows)


def mean(values: Tensor, seed: int, label: str) -> Score:
    """Mean over images; equal images have no finite PSNR and count as 100."""
    return bootstrap_mean(values.clamp(max=100.0), keyed_generator(seed, "bootstrap", label))
