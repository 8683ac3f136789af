"""Reconstructions by the tiny autoencoders:  .venv/bin/python docs/make_reconstructions.py

Trains each recipe that has not been trained yet (some minutes each on two cores), judges it on
held-out emoji, and lays the first pictures of all of them side by side in docs/images/.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

NAMES = ("emoji_ae", "emoji_vae", "emoji_vqvae", "emoji_vqvae2", "emoji_vqgan", "emoji_kl")
TARGET = Path(__file__).parent / "images" / "reconstructions.png"
EVALUATION = "name: {name}\nautoencoder: {run}/model\npictures: {{url: data/emoji}}\n"
TILE, GAP, COLUMNS, MARGIN = 64, 4, 10, 150


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the picture of reconstructions.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs are kept")
    parser.add_argument("names", nargs="*", default=NAMES, help="recipes, by name")
    arguments = parser.parse_args()
    rows = [("originals", "", pictures(arguments.runs, arguments.names[0], real=True))]
    for name in arguments.names:
        judged = arguments.runs / name / "judged" / "evaluation.json"
        if not judged.is_file():
            make(arguments.runs, name)
        scores = json.loads(judged.read_text(encoding="utf-8"))
        words = f"{scores['psnr']['value']:.1f} dB"
        if "bits_per_pixel" in scores:
            words += f", {scores['bits_per_pixel']:.2f} bits a pixel"
        rows.append((name, words, pictures(arguments.runs, name, real=False)))
    draw(rows).save(TARGET)
    print(f"{TARGET}: {len(rows) - 1} autoencoders")


def make(runs: Path, name: str) -> None:
    """Train and judge one recipe."""
    command = [sys.executable, "-m", "launch.cli"]
    run = runs / name
    train = [*command, "train", f"recipes/{name}.yaml", "--runs", str(runs)]
    subprocess.run(train, check=True)
    settings = run / "judge.yaml"
    settings.write_text(EVALUATION.format(name=name, run=run), encoding="utf-8")
    judge = [*command, "evaluate", str(settings), "--out", str(run / "judged")]
    subprocess.run(judge, check=True)


def pictures(runs: Path, name: str, *, real: bool) -> list[Image.Image]:
    """The first tiles of a judged run's sheet: its originals, or what came back."""
    if not (runs / name / "judged" / "grid_reconstructions.png").is_file():
        make(runs, name)
    sheet = Image.open(runs / name / "judged" / "grid_reconstructions.png").convert("RGB")
    # evaluation/grids.py: panels of two tiles of 96 pixels, 4 a row, under a title of 48
    tile, gap = 96, 14
    width, height = 2 * tile + 4, 16 + tile + 6 + 28
    found = []
    for index in range(COLUMNS):
        left = gap + index % 4 * (width + gap) + (0 if real else tile + 4)
        top = 48 + index // 4 * (height + gap) + 16
        found.append(sheet.crop((left, top, left + tile, top + tile)))
    return found


def draw(rows: list[tuple[str, str, list[Image.Image]]]) -> Image.Image:
    """One row per autoencoder, its name and scores on the left."""
    step = TILE + GAP
    canvas = Image.new("RGB", (MARGIN + COLUMNS * step, GAP + len(rows) * step), "white")
    pen = ImageDraw.Draw(canvas)
    for row, (name, words, tiles) in enumerate(rows):
        top = GAP + row * step
        pen.text((8, top + 18), name, fill="#1c1c1c", font=ImageFont.load_default(13))
        pen.text((8, top + 36), words, fill="#767676", font=ImageFont.load_default(11))
        for column, tile in enumerate(tiles):
            resized = tile.resize((TILE, TILE), Image.Resampling.BOX)
            canvas.paste(resized, (MARGIN + column * step, top))
    return canvas


if __name__ == "__main__":
    main()
