"""One evaluation of an autoencoder: how well pictures come back, and what they cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from evaluation.config import PicturesConfig, ReconstructionEvaluation
from evaluation.metrics import fid
from evaluation.metrics.features import FeatureNetwork
from evaluation.metrics.image_similarity import PSNR_DEFINITION, SSIM_DEFINITION, psnr, ssim
from evaluation.metrics.intervals import Score, bootstrap_mean
from evaluation.report import FILE
from evaluation.samples import choose
from evaluation.text_to_image import Progress, phase
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_json, write_text
from mezzotint.common.keyed_random import keyed_generator
from mezzotint.inference.images import to_bytes
from mezzotint.inference.loading import AutocastPolicy, computes_in_bf16
from models import store
from models.autoencoders.autoencoder import Autoencoder
from models.autoencoders.bottleneck import perplexity
from models.autoencoders.dvae import DVAE
from models.autoencoders.hierarchical import VQVAE2

Model = DVAE | Autoencoder | VQVAE2


@dataclass
class Accumulator:
    """What is gathered over the pictures."""

    psnr: list[Tensor] = field(default_factory=list)
    ssim: list[Tensor] = field(default_factory=list)
    originals: list[Tensor] = field(default_factory=list)
    reconstructions: list[Tensor] = field(default_factory=list)
    counts: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    nats: float = 0.0
    """Divergence of continuous latents, summed over pictures."""
    pictures: int = 0
    cells: list[GridCell] = field(default_factory=list)


def evaluate_reconstruction(
    config: ReconstructionEvaluation, out: str | Path, progress: Progress | None = None
) -> Mapping[str, Any]:
    """Send pictures there and back and judge what comes.

    Writes `evaluation.json`, `report.md` and `grid_reconstructions.png` into `out`; returns the
    tree of the first.

    Raises:
        UserError: something that is read is missing or does not fit.
    """
    model = read_autoencoder(config.autoencoder)
    dataset = open_pictures(config.pictures, model.image_size)
    network = None if config.features is None else config.features.build()
    tell = phase(progress or (lambda *_: None), "reconstruct")
    arithmetic = AutocastPolicy(computes_in_bf16(config.precision))
    chosen = choose(dataset.keys(), config.pictures.limit, config.seed)
    if len(chosen) < 2:
        raise UserError(f"pictures: {len(chosen)} were selected; at least 2 are needed")
    tally = Accumulator()
    for first in range(0, len(chosen), config.batch):
        part = chosen[first : first + config.batch]
        take(tally, model, dataset, part, network, arithmetic, config)
        tell(first + len(part), len(chosen))
    tree = report(config, model, dataset, network, arithmetic, tally)
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    if tally.cells:
        grid = image_grid(
            in_columns(tally.cells, 4),
            title=f"{config.name}: originals and reconstructions",
            image_labels=("real", "reconstructed"),
        )
        grid.save(directory / "grid_reconstructions.png")
    write_text(directory / "report.md", to_markdown(tree))
    write_json(directory / FILE, tree)
    return tree


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


def open_pictures(config: PicturesConfig, image_size: int) -> Dataset:
    """The selected pictures at the autoencoder's size."""
    return open_dataset(config.part_of(config.part, image_size))


@torch.inference_mode()
def take(
    tally: Accumulator,
    model: Model,
    dataset: Dataset,
    chosen: list[int],
    network: FeatureNetwork | None,
    arithmetic: AutocastPolicy,
    config: ReconstructionEvaluation,
) -> None:
    """Reconstruct one batch and take it into the tally."""
    batch = dataset.batch(chosen)
    images = batch.images
    with arithmetic():
        back = model.reconstruct(images)
        arrays = model.code_arrays(images)
        if not arrays:
            rng = keyed_generator(config.seed, "rate", *batch.keys)
            rate = model(images, rng).latent.rate
            positions = math.prod(model.grid) if isinstance(model, Autoencoder) else 0
            tally.nats += math.nan if rate is None else float(rate) * positions * len(chosen)
    for name, codes in arrays.items():
        counts = torch.bincount(codes.flatten(), minlength=model.vocabularies()[name])
        tally.counts[name] = tally.counts.get(name, torch.zeros_like(counts)) + counts
        tally.positions[name] = codes[0].numel()
    real, drawn = to_bytes(images), to_bytes(back)
    tally.pictures += len(chosen)
    tally.psnr.append(psnr(drawn, real))
    tally.ssim.append(ssim(drawn, real))
    if network is not None:
        tally.originals.append(network(real))
        tally.reconstructions.append(network(drawn))
    left = max(config.shown - len(tally.cells), 0)
    tally.cells += [
        GridCell([[a.clone(), b.clone()]], caption)
        for caption, a, b in list(zip(batch.captions, real, drawn, strict=True))[:left]
    ]


def report(
    config: ReconstructionEvaluation,
    model: Model,
    dataset: Dataset,
    network: FeatureNetwork | None,
    arithmetic: AutocastPolicy,
    tally: Accumulator,
) -> dict[str, Any]:
    """The tree of evaluation.json."""
    described = store.describe(config.autoencoder)
    pixels = model.image_size**2
    tree: dict[str, Any] = {
        "name": config.name,
        "kind": "reconstruction",
        "protocol": {
            "autoencoder": {"kind": described.config.kind, "digest": described.digest},
            "pictures": {
                **config.pictures.model_dump(mode="json", exclude={"cache"}),
                "images": tally.pictures,
                "image_size": model.image_size,
                "fingerprint": dataset.manifest.fingerprint,
            },
            "psnr": PSNR_DEFINITION,
            "ssim": SSIM_DEFINITION,
            "latent": "hard codes" if tally.counts else "without noise",
            "precision": arithmetic.name,
            "seed": config.seed,
            "features": None if network is None else network.protocol(),
            "intervals": "95% over pictures, bootstrap",
        },
        "psnr": mean(torch.cat(tally.psnr), config.seed, "psnr").to_json(),
        "ssim": mean(torch.cat(tally.ssim), config.seed, "ssim").to_json(),
    }
    if network is not None:
        ours, real = (fid.fit(torch.cat(each)) for each in (tally.reconstructions, tally.originals))
        tree[f"reconstruction_{network.metric}"] = {
            "value": fid.frechet_distance(ours, real),
            "images": ours.n,
            "dimensions": network.dimensions,
            "against": "the originals of the same pictures",
            "caution": fid.caution(ours, real),
        }
    if tally.counts:
        tree["codebooks"] = {
            name: codebook(counts, tally.positions[name], pixels)
            for name, counts in tally.counts.items()
        }
        tree["bits_per_pixel"] = sum(each["bits_per_pixel"] for each in tree["codebooks"].values())
    elif not math.isnan(tally.nats):
        tree["bits_per_pixel"] = tally.nats / tally.pictures / math.log(2) / pixels
        tree["protocol"]["bits_per_pixel"] = "divergence from the standard normal prior"
    return tree


def codebook(counts: Tensor, positions: int, pixels: int) -> dict[str, float | int]:
    """Use of one codebook, and what its codes cost without a model of them."""
    bits = math.log2(len(counts))
    used = float(perplexity(counts))
    return {
        "codes": len(counts),
        "used": int((counts > 0).sum()),
        "perplexity": used,
        "positions": positions,
        "bits_per_pixel": bits * positions / pixels,
        "entropy_bits_per_pixel": math.log2(used) * positions / pixels,
    }


def mean(values: Tensor, seed: int, label: str) -> Score:
    """Mean over pictures; pictures that came back exactly have no finite PSNR and count as 100."""
    return bootstrap_mean(values.clamp(max=100.0), keyed_generator(seed, "bootstrap", label))


def to_markdown(tree: Mapping[str, Any]) -> str:
    """A summary for people."""
    psnr_score, ssim_score = tree["psnr"], tree["ssim"]
    count = tree["protocol"]["pictures"]["images"]
    lines = [
        f"# {tree['name']} ({tree['protocol']['autoencoder']['kind']}), {count} pictures",
        "",
        f"- PSNR {psnr_score['value']:.2f} dB [{psnr_score['low']:.2f}, {psnr_score['high']:.2f}]",
        f"- SSIM {ssim_score['value']:.4f} [{ssim_score['low']:.4f}, {ssim_score['high']:.4f}]",
    ]
    for name, value in tree.items():
        if name.startswith("reconstruction_"):
            note = f" Caution: {value['caution']}." if value["caution"] else ""
            lines.append(f"- {name}: {value['value']:.3f}.{note}")
    for name, book in tree.get("codebooks", {}).items():
        lines.append(
            f"- {name}: {book['used']} of {book['codes']} codes used, perplexity "
            f"{book['perplexity']:.1f}"
        )
    if "bits_per_pixel" in tree:
        lines.append(f"- {tree['bits_per_pixel']:.4f} bits per pixel")
    return "\n".join(lines) + "\n"
