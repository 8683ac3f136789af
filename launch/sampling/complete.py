"""`mezzotint complete`: pictures that begin like a given one and go on as a caption says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.config import ImageConfig
from data_pipeline.image_grid import GridCell, image_grid
from data_pipeline.images import decode
from launch.progress import Reporter
from launch.sampling.model_lookup import system_of
from launch.sampling.overrides import changed
from mezzotint.common.errors import UserError
from mezzotint.inference.build import DalleDrawer
from mezzotint.inference.config import DalleSystem
from mezzotint.inference.images import from_bytes, to_bytes
from models.systems.dalle import Progress

HIDDEN = 222
"""Grey of what is not given."""


@dataclass(frozen=True)
class Completing:
    """How pictures are completed."""

    system: str
    rows: int | None
    """Rows of codes that are kept; 7 of 16 of them where None, as DALLE-pytorch keeps 14 of 32."""
    number: int
    """Pictures shown per caption, the best ones."""
    candidates: int
    """Pictures drawn per caption."""
    seed: int
    guidance: float | None


def complete_sheet(
    run: Path, image: Path, captions: Sequence[str], out: Path, options: Completing
) -> int:
    """Complete the picture for every caption and write a PNG; returns the rows of codes kept.

    Raises:
        UserError: no such picture or system, or a system without codes.
        UserError: more rows than the grid has.
        UserError: the picture cannot be read.
    """
    config = system_of(run, options.system)
    if not isinstance(config, DalleSystem):
        raise UserError(
            f"--system {options.system}: is a {config.kind}; only a prior over codes completes "
            "pictures (a system of kind dalle)"
        )
    if options.guidance is not None:
        guided = changed(config, {"guidance": options.guidance})
        assert isinstance(guided, DalleSystem)
        config = guided
    if not image.is_file():
        raise UserError(f"{image}: no such picture")
    drawer = DalleDrawer.load(config, "auto")
    size = drawer.image_size
    given = torch.from_numpy(decode(image.read_bytes(), ImageConfig(size=size), str(image)).copy())
    height = drawer.dalle.dvae.grid[0]
    rows = height * 7 // 16 if options.rows is None else options.rows
    with Reporter(None) as reporter:
        pictures = draw(drawer, given, captions, rows, options, reporter.callback("codes"))
    shown = given.clone()
    shown[size * rows // height :] = HIDDEN
    cells = [
        [GridCell([[shown, *pictures[place]]], caption)] for place, caption in enumerate(captions)
    ]
    title = f"{options.system}: {rows} of {height} rows given, seed {options.seed}"
    out.parent.mkdir(parents=True, exist_ok=True)
    image_grid(cells, title=title, image_labels=("given",)).save(out)
    return rows


def draw(
    drawer: DalleDrawer,
    given: Tensor,
    captions: Sequence[str],
    rows: int,
    options: Completing,
    progress: Progress,
) -> Tensor:
    """The best completions (B, number, H, W, 3) uint8 of one picture (H, W, 3) uint8."""
    with torch.inference_mode(), drawer.arithmetic():
        top = drawer.dalle.top_of(from_bytes(given[None]), rows)
        samples = drawer.dalle.sample(
            drawer.text(captions),
            None if drawer.ranker is None else drawer.ranker.text(captions),
            torch.Generator().manual_seed(options.seed),
            candidates=max(options.candidates, options.number),
            sampling=drawer.config.sampling,
            top=top.expand(len(captions), -1, -1),
            progress=progress,
        )
        return to_bytes(samples.best_of(options.number))
