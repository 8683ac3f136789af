"""The run of a sampler as images: x and the prediction of x_0, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from PIL import Image

from data_pipeline.image_grid import GridAxis, GridCell, image_grid, in_columns
from mezzotint.common.errors import UserError
from mezzotint.inference.generator import SamplerStep
from mezzotint.inference.images import to_bytes

COLUMNS = 11
"""Steps in a PNG."""
FORMATS = (".png", ".gif")


@dataclass
class Trajectory:
    """A callback that keeps the steps of the first `count` images."""

    count: int
    frames: list[SamplerStep] = field(default_factory=list)
    """With x and predictions (count, H, W, 3) uint8."""

    def __call__(self, step: SamplerStep) -> None:
        """Keep a step; x is scaled to a standard deviation of at most 1."""
        x, denoised = step.x[: self.count], step.denoised[: self.count]
        scale = x.flatten(1).std(dim=1).clamp(min=1).view(-1, 1, 1, 1)
        x, denoised = to_bytes(x / scale).cpu(), to_bytes(denoised).cpu()
        self.frames.append(replace(step, x=x, denoised=denoised))

    def save(self, path: Path, captions: Sequence[str], title: str) -> None:
        """Write a strip (.png) or an animation (.gif)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".gif":
            self._save_animation(path, captions)
        else:
            self._strip(captions, title).save(path)

    def _strip(self, captions: Sequence[str], title: str) -> Image.Image:
        """Two rows per image, steps from left to right."""
        indices = torch.linspace(
            0, len(self.frames) - 1, min(COLUMNS, len(self.frames)), device="cpu"
        )
        shown = [self.frames[int(index)] for index in indices.round().tolist()]
        cells, labels = [], []
        for image in range(self.count):
            cells.append([GridCell([[frame.x[image]]]) for frame in shown])
            cells.append([GridCell([[frame.denoised[image]]]) for frame in shown])
            labels += [captions[image], "prediction of x_0"]
        steps = [f"{frame.time:.2f} · {frame.done}" for frame in shown]
        columns = GridAxis(steps, "timestep, and steps done")
        return image_grid(cells, title=title, rows=GridAxis(labels), columns=columns)

    def _save_animation(self, path: Path, captions: Sequence[str]) -> None:
        """A frame per step, x beside the prediction; the last one is held longer."""
        pages = []
        for frame in self.frames:
            cells = [
                GridCell([[frame.x[image], frame.denoised[image]]], captions[image])
                for image in range(self.count)
            ]
            grid = image_grid(
                in_columns(cells, min(4, self.count)),
                title=f"step {frame.done:>3} of {frame.total},  t = {frame.time:.2f}",
                image_labels=("x", "x_0"),
                max_width=1000,
            )
            pages.append(grid.quantize(128))
        still = max(40, min(200, 4000 // len(pages)))
        durations = [still] * (len(pages) - 1) + [2000]
        pages[0].save(path, save_all=True, append_images=pages[1:], duration=durations, loop=0)


def check_format(path: Path) -> None:
    """Refuse another format before anything is computed.

    Raises:
        UserError: neither .png nor .gif.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--trajectory {path}: ends with one of {', '.join(FORMATS)}")
