"""`mezzotint complete`: images completed from the upper part of a given one, by captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from data_pipeline.image_grid import GridCell, image_grid
from data_pipeline.images import decode
from launch.processes import run_in_processes
from launch.progress import Reporter
from launch.sampling.lost_captions import log_lost
from launch.sampling.overrides import with_overrides
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import MODELS_OWN, StatedPreprocessing
from mezzotint.inference.config import DalleSystem
from mezzotint.inference.dalle import DalleGenerator
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.model_lookup import system_of
from mezzotint.inference.preprocessing import image_config
from mezzotint.inference.process_group import ProcessGroup
from mezzotint.inference.runtime import Runtime, code_precision
from models.finite import named_samples

HIDDEN = 222
"""Grey level of what is not given."""


@dataclass(frozen=True)
class CompleteOptions:
    """How images are completed."""

    system: str
    rows: int | None
    """Rows of codes that are kept; 7 of 16 of them where None, as DALLE-pytorch keeps 14 of 32."""
    number: int
    """Images shown per caption, the best ones."""
    candidates: int
    """Images generated per caption."""
    seed: int
    guidance: float | None
    device: str | None = None
    processes: int | None = None
    preprocessing: StatedPreprocessing = MODELS_OWN


def complete(
    run: Path, image: Path, captions: Sequence[str], out: Path, options: CompleteOptions
) -> int | None:
    """Complete an image for every caption and write a PNG; returns the rows of codes kept.

    Raises:
        UserError: no such image or system, a system without codes, or more rows than the grid has.
    """
    config = system_of(run, options.system)
    if not isinstance(config, DalleSystem):
        raise UserError(
            f"--system {options.system}: is a {config.kind}; only a prior over codes completes "
            "images (a system of kind dalle)"
        )
    if options.preprocessing.force:
        config = config.model_copy(update={"force_preprocessing": True})
    if options.guidance is not None:
        config = with_overrides(config, {"guidance": options.guidance})
    if not image.is_file():
        raise UserError(f"{image}: no such image")
    images = len(captions) * max(options.candidates, options.number)
    return run_in_processes(
        partial(complete_on, config, image, tuple(captions), out, options),
        device=options.device,
        processes=options.processes,
        blocks=-(-images // GenerationRequest.batch_size),
        images=images,
    )


def complete_on(
    config: DalleSystem,
    image: Path,
    captions: tuple[str, ...],
    out: Path,
    options: CompleteOptions,
    device: torch.device,
    group: ProcessGroup,
) -> int | None:
    """One process's share; the main one writes the grid."""
    generator = DalleGenerator.load(config, Runtime.of(device, code_precision("auto"), group))
    size, height = generator.image_size, generator.dvae.grid[0]
    prepared = image_config(config.dvae, size, options.preprocessing)
    given = torch.from_numpy(decode(image.read_bytes(), prepared, str(image)).copy())
    rows = height * 7 // 16 if options.rows is None else options.rows
    with named_samples([str(image)]):
        prefix = generator.prefix_codes(given, rows)
    request = GenerationRequest(
        prompts=tuple(map(Prompt, captions)),
        number=max(options.candidates, options.number),
        seed=options.seed,
        prefix_codes=prefix,
    )
    with Reporter(None, shows=group.is_main) as reporter:
        result = generator.generate(request, progress=reporter.callback("complete"))
    if not group.is_main:
        return None
    log_lost(generator, captions)
    shown = given.clone()
    shown[size * rows // height :] = HIDDEN
    cells = [
        [GridCell([[shown, *best]], caption)]
        for caption, best in zip(captions, result.top(options.number).images, strict=True)
    ]
    title = f"{options.system}: {rows} of {height} rows given, seed {options.seed}"
    out.parent.mkdir(parents=True, exist_ok=True)
    image_grid(cells, title=title, image_labels=("given",)).save(out)
    return rows
