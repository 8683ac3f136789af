"""What `sample` reports: its grid of images, text and JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data_pipeline.image_grid import GridAxis, GridCell, image_grid, in_columns
from launch.sampling.lost_captions import lost_captions
from launch.sampling.plan import SamplePlan
from mezzotint.inference.config import DiffusionSystem, LatentSystem
from mezzotint.inference.editing import KNOWN_REGION, TRAINED, inpaints
from mezzotint.inference.generator import GenerationResult


@dataclass(frozen=True)
class SampleReport:
    """What was generated: a result for each cell of the plan."""

    out: Path
    plan: SamplePlan
    results: Sequence[GenerationResult]
    lost: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Ends of captions that are not read, by caption and by what does not read them."""

    @property
    def evaluations(self) -> list[int]:
        """Network evaluations per image of each cell, where they are counted."""
        return [result.nfe.network for result in self.results if result.nfe is not None]

    @property
    def inpainting(self) -> str | None:
        """How the given image was inpainted; None where none was."""
        edit = self.plan.request.edit
        if edit is None or edit.mask is None:
            return None
        config = self.plan.configs[0]
        assert isinstance(config, DiffusionSystem | LatentSystem), "others take no image"
        return TRAINED if inpaints(config.model) else KNOWN_REGION

    def to_text(self) -> str:
        prompts, trajectory = self.plan.request.prompts, self.plan.options.trajectory
        kind = "captions" if prompts[0].text is not None else "prompts"
        what = f"{self.plan.number} images of each of {len(prompts)} {kind}"
        if len(self.results) > 1:
            what = f"{len(self.results)} settings, {what}"
        lines = [f"{self.out}: {what}"]
        if trajectory is not None:
            lines.append(f"{trajectory}: the steps of the first ones")
        counts = sorted(set(self.evaluations))
        if counts:
            span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
            lines.append(f"network evaluations per image: {span}")
        lines += lost_captions(self.lost)
        if (how := self.inpainting) is not None:
            lines.append(f"inpainting: {how}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything that is needed to generate the same again."""
        plan, trajectory = self.plan, self.plan.options.trajectory
        tree = {
            "out": str(self.out),
            "trajectory": None if trajectory is None else str(trajectory),
            "system": plan.configs[0].model_dump(mode="json"),
            "prompts": [
                {"title": title, "text": prompt.text, "label": prompt.label}
                for title, prompt in zip(plan.titles, plan.request.prompts, strict=True)
            ],
            "lost": {caption: dict(lost) for caption, lost in self.lost.items()},
            "number": plan.number,
            "seed": plan.request.seed,
            "image": None if plan.options.image is None else str(plan.options.image),
            "strength": None if plan.request.edit is None else plan.request.edit.strength,
            "inpainting": self.inpainting,
            "batch": plan.request.batch_size,
            "cells": [
                {
                    "settings": dict(settings),
                    "images": plan.source,
                    "nfe": None if result.nfe is None else asdict(result.nfe),
                    "seconds": round(result.seconds, 2),
                }
                for settings, result in zip(plan.settings, self.results, strict=True)
            ],
        }
        return json.dumps(tree, indent=2, ensure_ascii=False)


def shown_hint(hint: Tensor) -> Tensor:
    """A hint (C, H, W) in [0, 1] as levels (H, W, 3): of other than 1 or 3 channels their mean."""
    if len(hint) not in (1, 3):
        hint = hint.mean(dim=0, keepdim=True)
    levels = (hint * 255).round().to(torch.uint8)
    return levels.expand(3, -1, -1).permute(1, 2, 0)


def sample_grid(report: SampleReport) -> Image.Image:
    """A row of images per prompt; of a sweep a table, whose rows are prompts if it has one axis."""
    plan = report.plan
    images = [result.top(plan.number).images for result in report.results]
    if not plan.axes:
        hints = [shown_hint(each) for each in plan.request.hints]
        cells = [
            GridCell([[*hints, *row]], title)
            for title, row in zip(plan.titles, images[0], strict=True)
        ]
        columns = 1 if plan.number > 3 else 2
        return image_grid(in_columns(cells, columns), title=f"{plan.name}, {plan.source}")
    axes = [GridAxis([str(value) for value in values], key) for key, values in plan.axes.items()]
    if len(axes) == 1:
        rows, across = GridAxis(plan.titles), axes[0]
        blocks = [[each[row : row + 1] for each in images] for row in range(len(plan.titles))]
        notes = [plan.source]
    else:
        rows, across = axes
        width = len(across.labels)
        blocks = [images[start : start + width] for start in range(0, len(images), width)]
        notes = [f"In each cell: {plan.source}; from top to bottom: {'; '.join(plan.titles)}."]
    counts = report.evaluations
    if len(set(counts)) == 1:
        notes.append(f"{counts[0]} network evaluations per image.")
    elif counts:
        listed = ", ".join(map(str, counts))
        notes.append(f"Network evaluations per image, in reading order: {listed}.")
    return image_grid(
        [[GridCell(block) for block in row] for row in blocks],
        title=f"{plan.name}: {' by '.join(plan.axes)}",
        rows=rows,
        columns=across,
        notes=notes,
    )
