"""What `sample` reports: its grid of images, text and JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from data_pipeline.image_grid import GridAxis, GridCell, image_grid, in_columns
from launch.sampling.overrides import Overrides, Value
from mezzotint.inference.config import SystemConfig
from mezzotint.inference.generator import GenerationRequest, GenerationResult


@dataclass(frozen=True)
class SweepCell:
    """The result of one combination of settings."""

    settings: Overrides
    result: GenerationResult


@dataclass(frozen=True)
class SampleReport:
    """What was generated."""

    out: Path
    trajectory: Path | None
    name: str
    system: SystemConfig
    titles: tuple[str, ...]
    request: GenerationRequest
    number: int
    """Images shown per prompt."""
    source: str
    axes: Mapping[str, Sequence[Value]]
    cells: tuple[SweepCell, ...]

    @property
    def evaluations(self) -> list[int]:
        """Network evaluations per image of each cell, where they are counted."""
        return [cell.result.nfe.network for cell in self.cells if cell.result.nfe is not None]

    def to_text(self) -> str:
        """Two or three lines."""
        prompts = self.request.prompts
        kind = "captions" if prompts[0].text is not None else "prompts"
        what = f"{self.number} images of each of {len(prompts)} {kind}"
        if len(self.cells) > 1:
            what = f"{len(self.cells)} settings, {what}"
        lines = [f"{self.out}: {what}"]
        if self.trajectory is not None:
            lines.append(f"{self.trajectory}: the steps of the first ones")
        counts = sorted(set(self.evaluations))
        if counts:
            span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            lines.append(f"network evaluations per image: {span}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything that is needed to generate the same again."""
        tree = {
            "out": str(self.out),
            "trajectory": None if self.trajectory is None else str(self.trajectory),
            "system": self.system.model_dump(mode="json"),
            "prompts": [
                {"title": title, "text": prompt.text, "label": prompt.label}
                for title, prompt in zip(self.titles, self.request.prompts, strict=True)
            ],
            "number": self.number,
            "seed": self.request.seed,
            "batch": self.request.batch_size,
            "cells": [
                {
                    "settings": dict(cell.settings),
                    "images": self.source,
                    "nfe": None if cell.result.nfe is None else asdict(cell.result.nfe),
                    "seconds": round(cell.result.seconds, 2),
                }
                for cell in self.cells
            ],
        }
        return json.dumps(tree, indent=2, ensure_ascii=False)


def sample_grid(report: SampleReport) -> Image.Image:
    """A row of images per prompt; of a sweep a table, whose rows are prompts if it has one axis."""
    images = [cell.result.top(report.number).images for cell in report.cells]
    if not report.axes:
        cells = [
            GridCell([list(row)], title)
            for title, row in zip(report.titles, images[0], strict=True)
        ]
        columns = 1 if report.number > 3 else 2
        return image_grid(in_columns(cells, columns), title=f"{report.name}, {report.source}")
    axes = [GridAxis([str(value) for value in values], key) for key, values in report.axes.items()]
    if len(axes) == 1:
        rows, across = GridAxis(report.titles), axes[0]
        blocks = [[each[row : row + 1] for each in images] for row in range(len(report.titles))]
        notes = [report.source]
    else:
        rows, across = axes
        width = len(across.labels)
        blocks = [images[start : start + width] for start in range(0, len(images), width)]
        notes = [f"In each cell: {report.source}; from top to bottom: {'; '.join(report.titles)}."]
    counts = report.evaluations
    if len(set(counts)) == 1:
        notes.append(f"{counts[0]} network evaluations per image.")
    elif counts:
        listed = ", ".join(map(str, counts))
        notes.append(f"Network evaluations per image, in reading order: {listed}.")
    return image_grid(
        [[GridCell(block) for block in row] for row in blocks],
        title=f"{report.name}: {' by '.join(report.axes)}",
        rows=rows,
        columns=across,
        notes=notes,
    )
