"""`mezzotint edit`: edits of image files by an unCLIP system, as one labelled strip."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from data_pipeline.image_grid import GridAxis, GridCell, image_grid
from launch.edit.images import EditImages, read_images
from launch.edit.strips import Edit, Strip, shown_scores
from launch.edit.system import edit_system
from launch.processes import run_in_processes
from launch.progress import Reporter
from launch.sampling.lost_captions import log_lost
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing
from mezzotint.inference.config import ClipSource, UnclipSystem
from mezzotint.inference.process_group import ProcessGroup
from mezzotint.inference.runtime import Precision, Runtime
from mezzotint.inference.unclip.edits import DEFAULTS, EditSettings, ImageLatents, invert
from mezzotint.inference.unclip.generator import UnclipGenerator


@dataclass(frozen=True)
class EditOptions:
    """How images are edited, whatever the edit."""

    out: Path
    settings: EditSettings = DEFAULTS
    captions: tuple[str, ...] = ()
    """What the images show, for a decoder of captions: one each, one for all, or none."""
    system: str | None = None
    clip: ClipSource | None = None
    device: str | None = None
    processes: int | None = None
    precision: Precision = "fp32"
    show_progress: bool = True
    preprocessing: StatedPreprocessing = MODELS_OWN


@dataclass(frozen=True)
class EditReport:
    """What was edited, and how exactly the images were inverted."""

    kind: str
    system: str
    edit: Edit
    options: EditOptions
    given: EditImages
    latents: ImageLatents
    strip: Strip

    def to_text(self) -> str:
        listed = ", ".join(f"{value:.1f} dB" for value in self.latents.psnr.tolist())
        names = ", ".join(self.given.names)
        return "\n".join(
            [
                f"{self.options.out}: {self.kind} of {names}",
                f"PSNR of the inverted images, generated again: {listed} "
                f"({self.options.settings.steps} steps each way)",
            ]
        )

    def to_json(self) -> str:
        """All numbers; one list entry per image."""
        psnr = self.latents.psnr.tolist()
        tree = {
            "edit": self.kind,
            "system": self.system,
            "out": str(self.options.out),
            "images": list(self.given.names),
            "captions": list(self.edit.captions),
            **asdict(self.options.settings),
            "psnr": [round(each, 4) if math.isfinite(each) else None for each in psnr],
            "columns": {"name": self.edit.axis, "values": list(self.strip.columns)},
            "cosines": {
                name: [[[round(v, 5) for v in cell] for cell in row] for row in each.tolist()]
                for name, each in self.strip.scores.items()
            },
        }
        return json.dumps(tree, indent=2, ensure_ascii=False)


def run_edit(
    kind: str, where: str, paths: Sequence[Path], edit: Edit, options: EditOptions
) -> EditReport | None:
    """Invert images, edit them, and write the strip; None on ranks that do not write.

    Raises:
        UserError: no such system or image, one that does not fit, or settings that do not.
    """
    edit.check(len(paths))
    if len(options.captions) not in (0, 1, len(paths)):
        raise UserError(
            f"--caption: {len(options.captions)} given for {len(paths)} images; give one for all, "
            "or one each in their order"
        )
    title, config = edit_system(where, options.system, options.clip)
    if options.preprocessing.force:
        config = config.model_copy(update={"force_preprocessing": True})
    count = edit.count(len(paths))
    return run_in_processes(
        partial(edit_on, kind, title, config, tuple(paths), edit, options),
        device=options.device,
        processes=options.processes,
        blocks=-(-count // options.settings.batch_size),
        images=count,
    )


def edit_on(
    kind: str,
    title: str,
    config: UnclipSystem,
    paths: tuple[Path, ...],
    edit: Edit,
    options: EditOptions,
    device: torch.device,
    group: ProcessGroup,
) -> EditReport | None:
    """One process's share; the main one writes the strip."""
    system = UnclipGenerator.load(config, Runtime.of(device, options.precision, group))
    given = read_images(paths, system, options.preprocessing)
    captions = options.captions * (len(paths) if len(options.captions) == 1 else 1)
    with Reporter(None, shows=group.is_main and options.show_progress) as reporter:
        latents = invert(
            system,
            given.decoder,
            embedding=given.embedding,
            captions=captions,
            settings=options.settings,
            progress=reporter.callback("invert"),
        )
        strip = edit.run(system, latents, options.settings, reporter.callback(kind))
    if not group.is_main:
        return None
    log_lost(system, (*edit.captions, *captions))
    report = EditReport(kind, title, edit, options, given, latents, strip)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw(report).save(options.out)
    return report


def draw(report: EditReport) -> Image.Image:
    """A row for each image: itself, and its edits; of two images between which is gone, one row."""
    strip, given, between = report.strip, report.given, len(report.strip.images) == 1
    originals = [[image] for image in given.decoder]
    if between and len(originals) > 1:
        originals = [[originals[0][0], originals[1][0]]]
    rows = [
        [
            GridCell([originals[row]]),
            *(
                GridCell([list(cell)], shown_scores(strip.scores, (row, column)))
                for column, cell in enumerate(images)
            ),
        ]
        for row, images in enumerate(strip.images)
    ]
    listed = ", ".join(f"{value:.1f} dB" for value in report.latents.psnr.tolist())
    words = " to ".join(report.edit.captions)
    labels = [" and ".join(given.names)] if len(rows) == 1 else list(given.names)
    return image_grid(
        rows,
        title=f"{report.system}: {report.kind}{f', {words}' if words else ''}",
        rows=GridAxis(labels),
        columns=GridAxis(["image", *(f"{value:.3g}" for value in strip.columns)], report.edit.axis),
        notes=[
            f"PSNR of the inverted images, generated again: {listed}.",
            f"Below images: their mean CLIP cosine with {' and '.join(report.edit.compared)}.",
        ],
    )
