"""`mezzotint edit imagic`: one real image changed by a target text, as a strip over eta."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from data_pipeline.image_grid import GridAxis, GridCell, image_grid
from launch.processes import run_in_processes
from launch.progress import Reporter
from launch.sampling.inputs import images_of_files
from launch.sampling.lost_captions import log_lost
from launch.sampling.overrides import Overrides, with_overrides
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.config import ClipSource, SystemConfig
from mezzotint.inference.images import to_bytes
from mezzotint.inference.imagic.config import ImagicConfig
from mezzotint.inference.imagic.edit import ETAS, ImagicRequest, ImagicResult, edit
from mezzotint.inference.imagic.scores import FeatureDistance, ImagicScores, Score, scores_of
from mezzotint.inference.load import load_generator
from mezzotint.inference.model_lookup import find_system, is_pipeline, pipeline_clip
from mezzotint.inference.preprocessing import image_config, image_model
from mezzotint.inference.process_group import ProcessGroup
from mezzotint.inference.runtime import Precision


@dataclass(frozen=True)
class ImagicOptions:
    """What is edited, and how."""

    image: Path
    target: str
    out: Path
    work: Path
    """Where trained parts are kept."""
    config: ImagicConfig
    etas: tuple[float, ...] = ETAS
    number: int = 1
    seed: int = 0
    batch: int = 32
    system: str | None = None
    overrides: Overrides | None = None
    """Of the system's sampling."""
    clip: str | None = None
    """A CLIP model's directory; None: that of the pipeline's evaluation, if there is one."""
    vgg: str | None = None
    lpips: str | None = None
    device: str | None = None
    processes: int | None = None
    precision: Precision = "auto"
    preprocessing: StatedPreprocessing = MODELS_OWN
    show_progress: bool = True


@dataclass(frozen=True)
class ImagicReport:
    """An edit with its scores."""

    options: ImagicOptions
    system: SystemConfig
    source: Tensor
    """(H, W, 3) uint8."""
    result: ImagicResult
    scores: ImagicScores
    distance: str
    """The features of the distance."""

    def rows(self) -> Mapping[str, Score]:
        """The scores of every column of the strip, by its label."""
        labels = [f"{eta:g}" for eta in self.options.etas]
        etas = dict(zip(labels, self.scores.etas, strict=True))
        return {"source": self.scores.source, **etas, "unedited": self.scores.unedited}

    def to_text(self) -> str:
        best = None if self.scores.best is None else f"{self.options.etas[self.scores.best]:g}"
        lines = ["     eta  CLIP score  distance"]
        for label, score in self.rows().items():
            clip = "-" if score.clip is None else f"{score.clip:.1f}"
            mark = "  best" if label == best else ""
            lines.append(f"{label:>8}  {clip:>10}  {score.distance:>8.4f}{mark}")
        if best is None:
            lines.append("no CLIP model was given, so none is marked as the best: give --clip")
        lines.append(f"distance from the source: features of {self.distance}")
        losses = ", ".join(f"{value:.3g} {name}" for name, value in self.result.losses.items())
        lines.append(f"loss: {losses}")
        lines.append("weights of the system: as before the edit, by their digests")
        lines.append(f"{self.options.work}: what was trained; other --etas only sample")
        lines.append(f"{self.options.out}: the strip")
        return "\n".join(lines)

    def to_json(self) -> str:
        options = self.options
        tree = {
            "out": str(options.out),
            "work": str(options.work),
            "image": str(options.image),
            "target": options.target,
            "system": self.system.model_dump(mode="json"),
            "training": options.config.model_dump(mode="json"),
            "number": options.number,
            "seed": options.seed,
            "losses": dict(self.result.losses),
            "digests": {"before": dict(self.result.digests), "after": dict(self.result.digests)},
            "distance": self.distance,
            "etas": [
                {"eta": eta, **asdict(score)}
                for eta, score in zip(options.etas, self.scores.etas, strict=True)
            ],
            "source": asdict(self.scores.source),
            "unedited": asdict(self.scores.unedited),
            "best": None if self.scores.best is None else options.etas[self.scores.best],
        }
        return json.dumps(tree, indent=2, ensure_ascii=False)

    def strip(self) -> Image.Image:
        """A row per number: the source, every eta, and the unedited sample of the target."""
        labels = [f"eta {eta:g}" for eta in self.options.etas]
        columns = [self.result.images[index] for index in range(len(labels))]
        shown = [self.source.expand_as(self.result.unedited), *columns, self.result.unedited]
        scores, best = list(self.rows().values()), self.scores.best
        cells = [
            GridCell(images[:, None], _caption(score), correct=True if place - 1 == best else None)
            for place, (images, score) in enumerate(zip(shown, scores, strict=True))
        ]
        chosen = "" if best is None else f"Underlined: the best eta, {self.options.etas[best]:g}. "
        note = (
            f"{chosen}Below each: 100 x cosine of its CLIP embedding and the target's, and the "
            f"distance from the source in features of {self.distance}. Right: the target's caption "
            "by the system without an edit."
        )
        return image_grid(
            [cells],
            title=f"{self.options.image.name}: {self.options.target}",
            columns=GridAxis(["source", *labels, "unedited"]),
            notes=[note],
        )


def _caption(score: Score) -> str:
    clip = "" if score.clip is None else f"CLIP {score.clip:.1f} "
    return f"{clip}dist {score.distance:.3f}"


def edit_image(where: str, options: ImagicOptions) -> ImagicReport | None:
    """Edit an image and write its strip; None on ranks that do not write.

    Raises:
        UserError: no such system, image, model or setting, or a system that cannot be edited so.
    """
    config = with_overrides(find_system(where, options.system), options.overrides or {}, "--set")
    if not options.image.is_file():
        raise UserError(f"{options.image}: no such image")
    clip: ClipSource | None = options.clip
    if clip is None and is_pipeline(where):
        clip = pipeline_clip(Path(where), options.system)
    images = len(options.etas) * options.number
    report = run_in_processes(
        partial(edit_on, config, clip, options),
        device=options.device,
        processes=options.processes,
        blocks=-(-images // options.batch),
        images=images,
    )
    if report is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        report.strip().save(options.out)
    return report


def edit_on(
    config: SystemConfig,
    clip: ClipSource | None,
    options: ImagicOptions,
    device: torch.device,
    group: ProcessGroup,
) -> ImagicReport | None:
    """The edit by one of the processes, which train alike and share the samples."""
    generator = load_generator(config, device=device, precision=options.precision, group=group)
    distance = FeatureDistance.of(options.vgg, options.lpips, device)
    embedder = None if clip is None else ClipEmbedder.load(clip, device)
    prepared = image_config(image_model(config), generator.image_size, options.preprocessing)
    source = to_bytes(images_of_files([options.image], prepared).images)[0]
    request = ImagicRequest(
        source, options.target, options.etas, options.number, options.seed, options.batch
    )
    with Reporter(None, shows=group.is_main and options.show_progress) as reporter:
        result = edit(
            generator, request, options.config, work=options.work, phases=reporter.callback
        )
    if not group.is_main:
        return None
    log_lost(generator, [options.target])
    scores = scores_of(result, source, options.target, distance, embedder)
    return ImagicReport(options, config, source, result, scores, distance.name)
