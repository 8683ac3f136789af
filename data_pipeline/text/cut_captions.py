"""How many captions of a set are longer than an encoder takes, counted over a sample of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_pipeline.dataset import Dataset
from mezzotint.common import storage

READ = 1000
"""Samples whose captions are read."""
SHARDS = 4
"""Shards of a local set that they are read from; of a remote one it is one."""
SHOWN = 60


class CaptionLimit(Protocol):
    """What cuts captions."""

    @property
    def length(self) -> int:
        """Ids per caption."""

    def lost(self, caption: str) -> str:
        """The end of a caption that is cut; empty where it fits."""


@dataclass(frozen=True)
class CutCaptions:
    """How many captions of those that were read do not fit in `length` ids."""

    encoder: str
    """Key of the recipe, or the file, that cuts them."""
    length: int
    read: int
    cut: int
    example: str
    """What is lost of one of them; empty without any."""

    @property
    def share(self) -> float:
        return self.cut / self.read if self.read else 0.0

    def to_text(self) -> str:
        """One sentence."""
        found = (
            f"{self.cut:,} of {self.read:,} captions read ({self.share:.1%}) are longer than the "
            f"{self.length} tokens of {self.encoder}"
        )
        return f"{found} and cut, one before {shown(self.example)}" if self.cut else found


def count_cut(captions: Iterable[str], limit: CaptionLimit, encoder: str) -> CutCaptions:
    """Count the captions that a tokenizer cuts."""
    read = cut = 0
    example = ""
    for caption in captions:
        read += 1
        lost = limit.lost(caption)
        cut += bool(lost)
        example = example or lost
    return CutCaptions(encoder, limit.length, read, cut, example)


def sampled_captions(dataset: Dataset, *, most: int = READ) -> list[str]:
    """The captions of `most` samples as training reads them, evenly spaced over a few shards.

    Raises:
        UserError: a shard cannot be read.
    """
    sizes = np.asarray(dataset.shard_sizes)
    starts, filled = np.cumsum(sizes) - sizes, np.flatnonzero(sizes)
    count = SHARDS if storage.is_local(dataset.config.url) else 1
    shards = filled[np.unique(np.linspace(0, len(filled) - 1, min(count, len(filled))).astype(int))]
    captions: list[str] = []
    for shard in shards:
        here = min(int(sizes[shard]), most // len(shards))
        for offset in np.unique(np.linspace(0, sizes[shard] - 1, here).astype(int)):
            index = int(starts[shard] + offset)
            if dataset.config.text is None or dataset.config.text.captions == "random":
                captions += dataset.captions_of(index)
            else:
                captions.append(dataset.caption(index, seed=0))
    return captions


def shown(text: str) -> str:
    """A text in quotes, at most `SHOWN` characters of it, without control characters."""
    short = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
    return repr(short)
