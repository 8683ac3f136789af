"""A look into a shard set: what it holds, and a sheet of its pictures."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from data_pipeline.images import IMAGE_EXTENSIONS, open_rgb
from data_pipeline.manifest import Attribute
from mezzotint.common.errors import UserError

_COMMON = 12


@dataclass(frozen=True)
class SplitSizes:
    """A split in numbers."""

    description: str
    train: int
    test: int


@dataclass(frozen=True)
class CaptionStatistics:
    """Of the captions read: how many, how many distinct, and their words (split at spaces)."""

    read: int
    distinct: int
    words_mean: float
    words_max: int
    characters_max: int
    vocabulary: int
    common: Mapping[str, int]


@dataclass(frozen=True)
class Row:
    """One sample, shown."""

    key: str
    caption: str
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Inspection:
    """What a set holds."""

    url: str
    name: str
    licence: str
    fingerprint: str
    encoder: str | None
    provenance: Mapping[str, str]
    fields: Mapping[str, str]
    samples: int
    shards: int
    bytes: int
    splits: Mapping[str, SplitSizes]
    attributes: Mapping[str, Mapping[str, int]]
    """The commonest values of each attribute."""
    captions: CaptionStatistics
    rows: tuple[Row, ...]


def inspect(url: str, *, rows: int = 8, captions: int = 20_000) -> Inspection:
    """Look into the set at ``url``.

    Args:
        url: Directory of the set.
        rows: Samples to show, evenly spaced over the captions read.
        captions: Captions to read at most, from the first shards on.

    Raises:
        UserError: There is no sound set.
    """
    dataset = open_dataset(DataConfig(url=url))
    manifest = dataset.manifest
    read = [dataset.caption(index) for index in range(min(captions, len(dataset)))]
    return Inspection(
        url=url,
        name=manifest.name,
        licence=manifest.licence,
        fingerprint=manifest.fingerprint,
        encoder=manifest.encoder,
        provenance=manifest.provenance,
        fields=manifest.fields,
        samples=len(dataset),
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        splits={
            name: SplitSizes(split.description, len(split.train), len(split.test))
            for name, split in manifest.splits.items()
        },
        attributes=_attributes(dataset),
        captions=_statistics(read),
        rows=tuple(
            Row(dataset.entry(index).key, read[index], dataset.attributes(index))
            for index in _spread(len(read), rows)
        ),
    )


def contact_sheet(dataset: Dataset, n: int, *, columns: int = 8, side: int = 128) -> Image.Image:
    """``n`` pictures of ``dataset``, evenly spaced, each above its caption.

    Pictures are scaled to fit ``side`` x ``side`` pixels whatever ``data.image`` says.

    Raises:
        UserError: The set has no images, or one is damaged.
    """
    cells = [
        GridCell([[_picture(dataset, index)]], dataset.caption(index))
        for index in _spread(len(dataset), n)
    ]
    return image_grid(in_columns(cells, columns), tile=side)


def _picture(dataset: Dataset, index: int) -> Image.Image:
    entry = dataset.entry(index)
    extension = next((one for one in IMAGE_EXTENSIONS if one in entry.members), None)
    if extension is None:
        raise UserError(f"{dataset.config.url}: '{entry.key}' has no image to show")
    name = f"{dataset.config.url}: {entry.key}.{extension}"
    image = dataset.config.image
    limit = image.max_pixels if image else 50_000_000
    return open_rgb(dataset.member(index, extension), name, max_pixels=limit)


def _spread(size: int, wanted: int) -> list[int]:
    return np.unique(np.linspace(0, size - 1, min(size, wanted)).astype(int)).tolist()


def _attributes(dataset: Dataset) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for index in range(len(dataset)):
        for name, value in dataset.attributes(index).items():
            if value is not None:
                counts.setdefault(name, Counter())[str(value)] += 1
    return {name: dict(counter.most_common(_COMMON)) for name, counter in counts.items()}


def _statistics(captions: list[str]) -> CaptionStatistics:
    words = [caption.lower().split() for caption in captions]
    lengths = [len(one) for one in words]
    counts = Counter(word for one in words for word in one)
    return CaptionStatistics(
        read=len(captions),
        distinct=len(set(captions)),
        words_mean=sum(lengths) / len(lengths),
        words_max=max(lengths),
        characters_max=max(map(len, captions)),
        vocabulary=len(counts),
        common=dict(counts.most_common(_COMMON)),
    )
