"""The part of the result page about autoencoders: what comes back, and what it costs."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHEET = "grid_reconstructions.png"


@dataclass(frozen=True)
class Reconstructed:
    """One judged autoencoder."""

    name: str
    kind: str
    psnr: str
    ssim: str
    distance: str
    """Its Fréchet distance with the metric's name, or that it was not measured."""
    codebooks: str
    rate: str
    sheet: str | None
    """The sheet of pictures as a data URI."""


def reconstructions(evaluations: Mapping[str, Path]) -> dict[str, Reconstructed]:
    """Those of the evaluations, by stage, that judged an autoencoder; a damaged file is not one."""
    return {
        name: read(tree, directory / SHEET)
        for name, (tree, directory) in judged(evaluations, "reconstruction").items()
    }


def judged(evaluations: Mapping[str, Path], kind: str) -> dict[str, tuple[Mapping[str, Any], Path]]:
    """The trees of the evaluations of one kind, by stage, with their directories."""
    found = {}
    for name, path in evaluations.items():
        file = path / "evaluation.json" if path.is_dir() else path
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if tree.get("kind") == kind:
            found[name] = (tree, file.parent)
    return found


def read(tree: Mapping[str, Any], sheet: Path) -> Reconstructed:
    """An evaluation's tree in words."""
    distances = [
        f"{name.removeprefix('reconstruction_')} {value['value']:.1f}, n = {value['images']}"
        for name, value in tree.items()
        if name.startswith("reconstruction_")
    ]
    books = [
        f"{name}: {book['used']} of {book['codes']} codes used, perplexity {book['perplexity']:.0f}"
        for name, book in tree.get("codebooks", {}).items()
    ]
    rate = tree.get("bits_per_pixel")
    return Reconstructed(
        name=str(tree["name"]),
        kind=str(tree["protocol"]["autoencoder"]["kind"]),
        psnr=f"{interval(tree['psnr'], 1)} dB",
        ssim=interval(tree["ssim"], 3),
        distance="; ".join(distances) or "not measured",
        codebooks="; ".join(books) or "no codes",
        rate="no rate" if rate is None else f"{rate:.2f} bits a pixel",
        sheet=embedded(sheet) if sheet.is_file() else None,
    )


def interval(score: Mapping[str, float], digits: int) -> str:
    """A score with its 95% interval."""
    value, low, high = (f"{score[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def embedded(path: Path) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
