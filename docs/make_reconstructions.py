"""Pictures of the tiny autoencoders:  .venv/bin/python docs/make_reconstructions.py

Runs the showcase (`make showcase`) where it has not been run yet, and with `--all` the recipes that
are not in it too, some minutes each. Then lays what comes back of the same held-out emoji side by
side, and copies the sheets of what the priors drew from captions, all into docs/images/.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data_pipeline.dataset import Dataset
from data_pipeline.image_grid import GridAxis, GridCell, image_grid
from evaluation.config import PicturesConfig
from evaluation.reconstruction import open_pictures, read_autoencoder
from evaluation.samples import choose
from mezzotint.inference.images import to_bytes

COMMAND = [sys.executable, "-P", "-m", "launch.cli.main"]
SHOWCASE = "recipes/pipelines/autoencoders.yaml"
IMAGES = Path(__file__).parent / "images"
PICTURES = PicturesConfig(url="data/emoji")
EVALUATION = "name: {name}\nautoencoder: {run}/model\npictures: {{url: data/emoji}}\n"
ALONE = {
    "AE": "emoji_ae",
    "VAE": "emoji_vae",
    "VQ-VAE": "emoji_vqvae",
    "dVAE": "emoji_dvae",
}
"""Recipes that the showcase does not train."""
SHOWN = {"VQ-VAE-2": "vqvae2", "VQ-GAN": "vqgan", "KL": "kl"}
"""Train stages of the showcase, each judged by the stage of its name with `_back`."""
SHEETS = {"vqvae2_drawn": "vqvae2-held-out.png", "vqgan_drawn": "vqgan-held-out.png"}
COLUMNS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the autoencoders' page.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("--all", action="store_true", help=f"also {', '.join(ALONE)}")
    arguments = parser.parse_args()
    runs: Path = arguments.runs
    subprocess.run([*COMMAND, "run", SHOWCASE, "--runs", str(runs)], check=True)
    root = runs / "autoencoders"
    judged = {}
    for name, recipe in ALONE.items() if arguments.all else ():
        if not (runs / recipe / "judged" / "evaluation.json").is_file():
            train_and_judge(runs, recipe)
        judged[name] = (runs / recipe / "model", runs / recipe / "judged")
    for name, stage in SHOWN.items():
        judged[name] = (root / stage / "model", root / f"{stage}_back")
    IMAGES.mkdir(exist_ok=True)
    for stage, name in SHEETS.items():
        shutil.copyfile(root / stage / "grid_held_out.png", IMAGES / name)
    target = IMAGES / "reconstructions.png"
    table(judged).save(target, optimize=True)
    print(f"{target}: {len(judged)} autoencoders; {', '.join(SHEETS.values())}: samples")


def train_and_judge(runs: Path, recipe: str) -> None:
    """One recipe by itself."""
    run = runs / recipe
    train = [*COMMAND, "train", f"recipes/{recipe}.yaml", "--runs", str(runs)]
    subprocess.run(train, check=True)
    settings = run / "judge.yaml"
    settings.write_text(EVALUATION.format(name=recipe, run=run), encoding="utf-8")
    judge = [*COMMAND, "evaluate", str(settings), "--out", str(run / "judged")]
    subprocess.run(judge, check=True)


def table(judged: dict[str, tuple[Path, Path]]) -> Image.Image:
    """One row per autoencoder: its name and scores, and what comes back."""
    labels, cells = ["originals"], []
    for name, (model, scores) in judged.items():
        autoencoder = read_autoencoder(str(model))
        dataset = open_pictures(PICTURES, autoencoder.image_size)
        images = first(dataset)
        with torch.inference_mode():
            back = to_bytes(autoencoder.reconstruct(images))
        if not cells:
            cells.append([GridCell(to_bytes(images)[None])])
        cells.append([GridCell(back[None])])
        labels.append(f"{name} {words(scores)}")
    return image_grid(
        cells,
        rows=GridAxis(labels),
        title="Held-out emoji, 32 pixels, and their reconstructions",
        notes=["PSNR over all held-out images; bits per pixel. The first images, not the best."],
        tile=64,
    )


def first(dataset: Dataset) -> Tensor:
    """The pictures that an evaluation shows first."""
    return dataset.batch(choose(dataset.keys(), COLUMNS, seed=0)).images


def words(directory: Path) -> str:
    """PSNR and rate of a judged autoencoder."""
    scores = json.loads((directory / "evaluation.json").read_text(encoding="utf-8"))
    rate = scores.get("bits_per_pixel")
    return f"{scores['psnr']['value']:.1f} dB" + ("" if rate is None else f", {rate:.2f} bits")


if __name__ == "__main__":
    main()
