"""Sample sets: which captions are asked, what a system drew for them, and both on disk."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_text
from mezzotint.common.keyed_random import keyed_seed
from mezzotint.inference.generator import Drawn, System
from mezzotint.inference.images import from_pil, to_pil

INDEX = "samples.jsonl"


@dataclass(frozen=True)
class Row:
    """One question: draw `caption` (of sample `key`, in a part of the reference set) once more."""

    part: str
    key: str
    caption: str
    repeat: int


@dataclass(frozen=True)
class SampleSet:
    """All rows with their candidates (R, N, H, W, 3) uint8 and ranking scores (R, N)."""

    rows: tuple[Row, ...]
    pictures: Tensor
    scores: Tensor | None

    @property
    def chosen(self) -> Tensor:
        """The sample of each row (R, H, W, 3): its best-ranked candidate, the first if unranked."""
        if self.scores is None:
            return self.pictures[:, 0]
        return self.pictures[torch.arange(len(self.rows)), self.scores.argmax(dim=1)]

    def of(self, part: str) -> list[int]:
        """Indices of the rows of one part."""
        return [index for index, row in enumerate(self.rows) if row.part == part]


def choose(keys: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Indices of `limit` keys in an order fixed by (seed, key): a larger limit only adds some."""

    def place(index: int) -> str:
        return sha256(f"{seed}\x1f{keys[index]}")

    return sorted(range(len(keys)), key=place)[:limit]


def draw(
    system: System,
    rows: Sequence[Row],
    *,
    seed: int,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSet:
    """Draw every row, `batch` at a time.

    The generator of a block is keyed by (seed, the rows in the block) and not by what was drawn
    before: a block gives the same pictures wherever it stands and whatever follows it.
    """
    if not rows:
        raise UserError("limit: no caption is left to draw; raise limit.test or limit.train")
    drawn: list[Drawn] = []
    for start in range(0, len(rows), batch):
        block = rows[start : start + batch]
        labels = [label for row in block for label in (row.key, row.repeat)]
        drawn.append(system.draw([row.caption for row in block], keyed_seed(seed, *labels)))
        if progress is not None:
            progress(start + len(block), len(rows))
    scores = [part.scores for part in drawn if part.scores is not None]
    return SampleSet(
        rows=tuple(rows),
        pictures=torch.cat([part.pictures for part in drawn]),
        scores=torch.cat(scores).float() if scores else None,
    )


def write(
    samples: SampleSet,
    directory: Path,
    real: Mapping[str, Tensor],
    nearest: Sequence[str] | None = None,
) -> None:
    """Write the chosen samples, all candidates as strips, and the `real` images by key, as PNG.

    `nearest` is the caption of the real image nearest to each sample, where that has been judged.
    Files are numbered; a key, which is data, only ever appears inside the index `samples.jsonl`.
    """
    for folder in ("samples", "real", "candidates"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (row, picture) in enumerate(zip(samples.rows, samples.chosen, strict=True)):
        name = f"{index:06d}.png"
        to_pil(picture).save(directory / "samples" / name)
        to_pil(real[row.key]).save(directory / "real" / name)
        line: dict[str, object] = {
            "part": row.part,
            "key": row.key,
            "caption": row.caption,
            "repeat": row.repeat,
            "sample": f"samples/{name}",
            "real": f"real/{name}",
        }
        candidates = samples.pictures[index]
        if len(candidates) > 1:
            to_pil(torch.cat(list(candidates), dim=1)).save(directory / "candidates" / name)
            line["candidates"] = f"candidates/{name}"
        if nearest is not None:
            line["nearest"] = nearest[index]
        if samples.scores is not None:
            line["scores"] = [round(score, 6) for score in samples.scores[index].tolist()]
        lines.append(json.dumps(line, ensure_ascii=False))
    write_text(directory / INDEX, "".join(f"{line}\n" for line in lines))


def read(directory: Path) -> SampleSet:
    """Read back what `write` wrote.

    Raises:
        UserError: no index, or a picture it names is missing.
    """
    try:
        lines = (directory / INDEX).read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        strips = [
            from_pil(Image.open(directory / entry.get("candidates", entry["sample"])))
            for entry in entries
        ]
    except OSError as error:
        raise UserError(f"{directory}: is not a whole sample set ({error})") from error
    pictures = [torch.stack(torch.split(strip, strip.shape[0], dim=1)) for strip in strips]
    ranked = all("scores" in entry for entry in entries)
    return SampleSet(
        rows=tuple(
            Row(entry["part"], entry["key"], entry["caption"], entry["repeat"]) for entry in entries
        ),
        pictures=torch.stack(pictures),
        scores=torch.tensor([entry["scores"] for entry in entries]) if ranked else None,
    )
