"""Images of the tiny autoencoders:  .venv/bin/python docs/make_reconstructions.py

Runs the showcase (`make showcase`) where it has not been run yet, and with `--all` the recipes that
are not in it too, some minutes each. Then writes reconstructions of the same held-out emoji as one
grid, and copies the grids of samples of the priors, all into docs/images/.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.image_grid import GridAxis, GridCell, image_grid
from evaluation.config import ReconstructedImages
from evaluation.metrics.intervals import Score
from evaluation.reconstruction import read_autoencoder
from evaluation.result import EvaluationResult
from evaluation.samples import choose
from mezzotint.inference.images import to_bytes

COMMAND = [sys.executable, "-P", "-m", "launch.cli.main"]
SHOWCASE = "recipes/pipelines/autoencoders.yaml"
IMAGES = Path(__file__).parent / "images"
HELD_OUT = ReconstructedImages(url="data/emoji")
EVALUATION = """kind: reconstruction
name: {name}
autoencoder: {run}/model
images: {{url: data/emoji}}
"""
ALONE = {
    "AE": "emoji_ae",
    "VAE": "emoji_vae",
    "VQ-VAE": "emoji_vqvae",
    "dVAE": "emoji_dvae",
}
"""Recipes that the showcase does not train."""
SHOWN = {"VQ-VAE-2": "vqvae2", "VQ-GAN": "vqgan", "KL": "kl"}
"""Train stages of the showcase, evaluated by the stages of their names with `_reconstruction`."""
SAMPLE_GRIDS = {"vqvae2_samples": "vqvae2-held-out.png", "vqgan_samples": "vqgan-held-out.png"}
COLUMNS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the images of the autoencoders' page.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--all", action="store_true", help=f"also {', '.join(ALONE)}")
    arguments = parser.parse_args()
    runs: Path = arguments.runs
    subprocess.run([*COMMAND, "run", SHOWCASE, "--runs", str(runs)], check=True)
    root = runs / "autoencoders"
    evaluated = {}
    for name, recipe in ALONE.items() if arguments.all else ():
        if not (runs / recipe / "evaluated" / "evaluation.json").is_file():
            train_and_evaluate(runs, recipe)
        evaluated[name] = (runs / recipe / "model", runs / recipe / "evaluated")
    for name, stage in SHOWN.items():
        evaluated[name] = (root / stage / "model", root / f"{stage}_reconstruction")
    IMAGES.mkdir(exist_ok=True)
    for stage, name in SAMPLE_GRIDS.items():
        shutil.copyfile(root / stage / "grid_held_out.png", IMAGES / name)
    target = IMAGES / "reconstructions.png"
    table(evaluated).save(target, optimize=True)
    print(f"{target}: {len(evaluated)} autoencoders; {', '.join(SAMPLE_GRIDS.values())}: samples")


def train_and_evaluate(runs: Path, recipe: str) -> None:
    """One recipe by itself."""
    run = runs / recipe
    train = [*COMMAND, "train", f"recipes/{recipe}.yaml", "--runs", str(runs)]
    subprocess.run(train, check=True)
    settings = run / "evaluation.yaml"
    settings.write_text(EVALUATION.format(name=recipe, run=run), encoding="utf-8")
    evaluate = [*COMMAND, "evaluate", str(settings), "--out", str(run / "evaluated")]
    subprocess.run(evaluate, check=True)


def table(evaluated: dict[str, tuple[Path, Path]]) -> Image.Image:
    """One row per autoencoder: its name and scores, and its reconstructions."""
    labels, cells = ["originals"], []
    for name, (model, results) in evaluated.items():
        autoencoder = read_autoencoder(str(model))
        dataset = open_dataset(HELD_OUT.data_config(HELD_OUT.part, autoencoder.image_size))
        images = first(dataset)
        with torch.inference_mode():
            reconstructed = to_bytes(autoencoder.reconstruct(images))
        if not cells:
            cells.append([GridCell(to_bytes(images)[None])])
        cells.append([GridCell(reconstructed[None])])
        labels.append(f"{name} {scores_of(results)}")
    return image_grid(
        cells,
        rows=GridAxis(labels),
        title="Held-out emoji, 32 pixels, and their reconstructions",
        notes=["PSNR over all held-out images; bits per pixel. The first images, not the best."],
        tile=64,
    )


def first(dataset: Dataset) -> Tensor:
    """The images that an evaluation shows first."""
    return dataset.batch(choose(dataset.keys(), COLUMNS, seed=0)).images


def scores_of(directory: Path) -> str:
    """PSNR and rate of an evaluated autoencoder."""
    metrics = EvaluationResult.read(directory / "evaluation.json").metrics
    psnr, rate = metrics["psnr"]["test"], metrics.get("bits_per_pixel", {}).get("total")
    assert isinstance(psnr, Score)
    return f"{psnr.value:.1f} dB" + ("" if rate is None else f", {rate:.2f} bits")


if __name__ == "__main__":
    main()
