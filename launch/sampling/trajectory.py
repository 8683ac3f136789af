"""A run of a solver as pictures: what it stands at and what it guesses, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data_pipeline.image_grid import GridAxis, GridCell, image_grid, in_columns
from mezzotint.common.errors import UserError
from mezzotint.inference.images import to_bytes
from models.systems.diffusion import SamplerStep

COLUMNS = 11
"""Moments on a strip."""
FORMATS = (".png", ".gif")


@dataclass(frozen=True)
class Frame:
    """One moment of the first pictures: noisy ones and guesses (n, H, W, 3) uint8."""

    done: int
    total: int
    time: float
    noisy: Tensor
    guess: Tensor


@dataclass
class Film:
    """Keeps the moments it is shown of the first `pictures`."""

    pictures: int
    frames: list[Frame] = field(default_factory=list)

    def __call__(self, moment: SamplerStep) -> None:
        """Keep a moment; x is shown with the deviation it would have as data of deviation 1."""
        noisy, guess = moment.x[: self.pictures], moment.guess[: self.pictures]
        scale = noisy.flatten(1).std(dim=1).clamp(min=1).view(-1, 1, 1, 1)
        self.frames.append(
            Frame(
                moment.done,
                moment.total,
                moment.time,
                to_bytes(noisy / scale),
                to_bytes(guess),
            )
        )

    def save(self, path: Path, captions: Sequence[str], title: str) -> None:
        """Write a strip (.png) or an animation (.gif)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".gif":
            self._animation(path, captions)
        else:
            self.strip(captions, title).save(path)

    def strip(self, captions: Sequence[str], title: str) -> Image.Image:
        """Two rows a picture, moments from left to right."""
        places = torch.linspace(0, len(self.frames) - 1, min(COLUMNS, len(self.frames)))
        shown = [self.frames[int(place)] for place in places.round().tolist()]
        cells, labels = [], []
        for picture in range(self.pictures):
            for part, name in (("noisy", "x at t"), ("guess", "guess of the picture")):
                frames: list[Tensor] = [getattr(frame, part)[picture] for frame in shown]
                cells.append([GridCell([[frame]]) for frame in frames])
                labels.append(captions[picture] if part == "noisy" else name)
        columns = GridAxis([f"{f.time:.2f} · {f.done}" for f in shown], "time, and steps done")
        return image_grid(cells, title=title, rows=GridAxis(labels), columns=columns)

    def _animation(self, path: Path, captions: Sequence[str]) -> None:
        """A frame per step, x beside the guess; the last one stays for a while."""
        pages = []
        columns = min(4, self.pictures)
        for frame in self.frames:
            cells = [
                GridCell([[frame.noisy[place], frame.guess[place]]], captions[place])
                for place in range(self.pictures)
            ]
            words = f"step {frame.done:>3} of {frame.total},  t = {frame.time:.2f}"
            grid = image_grid(
                in_columns(cells, columns),
                title=words,
                image_labels=("x", "guess"),
                max_width=1000,
            )
            pages.append(grid)
        still = max(40, min(200, 4000 // len(pages)))
        durations = [still] * (len(pages) - 1) + [2000]
        first, *rest = [page.quantize(128) for page in pages]
        first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)


def check_format(path: Path) -> None:
    """Refuse a film that could not be written, before anything is drawn.

    Raises:
        UserError: neither .png nor .gif.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--film {path}: ends with one of {', '.join(FORMATS)}")
