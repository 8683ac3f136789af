"""What `sample` has drawn: its sheet or grid, and what it tells people and programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from data_pipeline.image_grid import GridAxis, GridCell, image_grid, in_columns
from launch.sampling.overrides import Settings, Value
from launch.sampling.sampler import Order, Shown
from mezzotint.inference.config import SystemConfig


@dataclass(frozen=True)
class Cell:
    """One setting's pictures."""

    settings: Settings
    shown: Shown


@dataclass(frozen=True)
class Drawn:
    """What was drawn, for people and for programs."""

    out: Path
    film: Path | None
    system: SystemConfig
    order: Order
    cells: tuple[Cell, ...]

    def to_text(self) -> str:
        """Two or three lines."""
        subjects = len(self.order.subjects)
        what = f"{self.order.number} pictures of each of {subjects} "
        what += "captions" if self.order.subjects[0].caption is not None else "subjects"
        if len(self.cells) > 1:
            what = f"{len(self.cells)} settings, {what}"
        lines = [f"{self.out}: {what}"]
        if self.film is not None:
            lines.append(f"{self.film}: how the first ones form")
        calls = [cell.shown.calls for cell in self.cells if cell.shown.calls is not None]
        if calls:
            counts = sorted({each.network for each in calls})
            span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            lines.append(f"network calls for each picture: {span}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything that is needed to draw the same again."""
        tree = {
            "out": str(self.out),
            "film": None if self.film is None else str(self.film),
            "system": self.system.model_dump(mode="json"),
            "subjects": [asdict(subject) for subject in self.order.subjects],
            "number": self.order.number,
            "seed": self.order.seed,
            "batch": self.order.batch,
            "cells": [
                {
                    "settings": dict(cell.settings),
                    "pictures": cell.shown.words,
                    "network_calls": cell.shown.calls and cell.shown.calls.network,
                    "classifier_calls": cell.shown.calls and cell.shown.calls.classifier,
                    "seconds": round(cell.shown.seconds, 2),
                }
                for cell in self.cells
            ],
        }
        return json.dumps(tree, indent=2, ensure_ascii=False)


def plain_sheet(name: str, order: Order, shown: Shown) -> Image.Image:
    """A row of pictures for each subject."""
    cells = [
        GridCell(images[None], subject.title)
        for subject, images in zip(order.subjects, shown.pictures, strict=True)
    ]
    columns = 1 if order.number > 3 else 2
    return image_grid(in_columns(cells, columns), title=f"{name}, {shown.words}")


def grid(
    name: str, order: Order, axes: Mapping[str, Sequence[Value]], cells: Sequence[Cell]
) -> Image.Image:
    """A table of cells; with one setting swept, subjects are the rows."""
    swept = [GridAxis([str(value) for value in values], key) for key, values in axes.items()]
    words = cells[0].shown.words
    pictures = [cell.shown.pictures for cell in cells]
    titles = [subject.title for subject in order.subjects]
    if len(swept) == 1:
        rows, columns = GridAxis(titles), swept[0]
        blocks = [[each[place : place + 1] for each in pictures] for place in range(len(titles))]
        notes = [words]
    else:
        rows, columns = swept
        width = len(columns.labels)
        blocks = [pictures[start : start + width] for start in range(0, len(pictures), width)]
        notes = [f"In each cell: {words}; from above: {'; '.join(titles)}."]
    notes.append(calls_in_words(cells))
    return image_grid(
        [[GridCell(block) for block in row] for row in blocks],
        title=f"{name}: {' by '.join(axes)}",
        rows=rows,
        columns=columns,
        notes=[note for note in notes if note],
    )


def calls_in_words(cells: Sequence[Cell]) -> str:
    """How many calls each column or cell took."""
    counts = [cell.shown.calls.network for cell in cells if cell.shown.calls is not None]
    if not counts:
        return ""
    if len(set(counts)) == 1:
        return f"{counts[0]} network calls for each picture."
    return f"Network calls for each picture, in reading order: {', '.join(map(str, counts))}."
