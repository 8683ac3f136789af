"""The contents of a shard set in numbers, and an image grid of its samples."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from data_pipeline.images import IMAGE_EXTENSIONS, open_rgb
from data_pipeline.manifest import Attribute, Manifest
from data_pipeline.shards import unlisted_files
from mezzotint.common import storage
from mezzotint.common.errors import UserError

_COMMON = 12


@dataclass(frozen=True)
class CaptionStatistics:
    """Numbers of the captions that were read; words are split at spaces."""

    read: int
    distinct: int
    words_mean: float
    words_max: int
    characters_max: int
    vocabulary: int
    common: Mapping[str, int]


@dataclass(frozen=True)
class Example:
    """A sample of the set."""

    key: str
    caption: str
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Inspection:
    """The contents of a set."""

    url: str
    manifest: Manifest
    attributes: Mapping[str, Mapping[str, int]]
    """The most common values of each attribute, with their counts."""
    captions: CaptionStatistics
    examples: tuple[Example, ...]
    unlisted: tuple[str, ...] = ()
    """Files in the directory of the set that belong to no shard."""


def inspect(url: str, *, examples: int = 8, captions: int = 20_000) -> Inspection:
    """Read a set's manifest and its first captions, `captions` at most.

    The `examples` are evenly spaced over the captions read.

    Raises:
        UserError: There is no set, or it is damaged.
    """
    dataset = open_dataset(DataConfig(url=url))
    read = [dataset.caption(index) for index in range(min(captions, len(dataset)))]
    shown = _evenly_spaced(len(read), examples)
    return Inspection(
        url=url,
        manifest=dataset.manifest,
        attributes=_attributes(dataset),
        captions=_statistics(read),
        examples=tuple(
            Example(dataset.entry(index).key, read[index], dataset.entry(index).attributes)
            for index in shown
        ),
        unlisted=tuple(unlisted_files(dataset.manifest, storage.sizes(url))),
    )


def contact_sheet(dataset: Dataset, n: int, *, columns: int = 8, side: int = 128) -> Image.Image:
    """A grid of `n` evenly spaced images with captions, scaled to fit `side` x `side` pixels.

    Raises:
        UserError: The set has no images, or one is damaged.
    """
    cells = [
        GridCell([[_image(dataset, index)]], dataset.caption(index))
        for index in _evenly_spaced(len(dataset), n)
    ]
    return image_grid(in_columns(cells, columns), tile=side)


def _image(dataset: Dataset, index: int) -> Image.Image:
    entry = dataset.entry(index)
    extension = next((one for one in IMAGE_EXTENSIONS if one in entry.members), None)
    if extension is None:
        raise UserError(f"{dataset.config.url}: '{entry.key}' has no image")
    name = f"{dataset.config.url}: {entry.key}.{extension}"
    image = dataset.config.image
    limit = image.max_pixels if image else 50_000_000
    return open_rgb(dataset.member(index, extension), name, max_pixels=limit)


def _evenly_spaced(size: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(int)).tolist()


def _attributes(dataset: Dataset) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for index in range(len(dataset)):
        for name, value in dataset.entry(index).attributes.items():
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
