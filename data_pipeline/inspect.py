"""The contents of a shard set in numbers, and an image grid of its samples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.image_grid import GridCell, image_grid, in_columns
from data_pipeline.images import IMAGE_EXTENSIONS, open_rgb
from data_pipeline.inspection.image_statistics import (
    ImageStatistics,
    image_extension,
    image_statistics,
)
from data_pipeline.manifest import Attribute, Manifest
from data_pipeline.packing.reading import comparable
from data_pipeline.packing.records import LISTS, Content
from data_pipeline.packing.splits import overlap
from data_pipeline.sets.contents import Split
from data_pipeline.shards import unlisted_files
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError

_COMMON = 12


@dataclass(frozen=True)
class CaptionStatistics:
    """Numbers of the captions that were read; words are split at spaces."""

    read: int
    samples: int
    """Samples that they belong to."""
    several: int
    """Samples that have more than one caption."""
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
class SplitOverlap:
    """Test samples of a split that share something with a training sample, among those read."""

    images: int
    """With the same file."""
    captions: int
    """With a caption that differs at most in case, spaces and Unicode forms."""


@dataclass(frozen=True)
class Inspection:
    """The contents of a set."""

    url: str
    manifest: Manifest
    attributes: Mapping[str, Mapping[str, int]]
    """The most common values of each attribute, with their counts; of one with more values than a
    manifest counts, among the samples read."""
    captions: CaptionStatistics
    images: ImageStatistics | None
    """None if no image was decoded."""
    equal_images: int
    """Samples whose image file is that of an earlier one, among those read."""
    overlap: Mapping[str, SplitOverlap]
    """By split."""
    examples: tuple[Example, ...]
    unlisted: tuple[str, ...] = ()
    """Files in the directory of the set that belong to no shard."""


def inspect(
    url: str, *, examples: int = 8, samples: int = 20_000, images: int = 2_000
) -> Inspection:
    """Read a set's manifest and its first samples, and decode some of their images.

    At most `samples` are read. The `images` to decode and the `examples` are evenly spaced over
    them.

    Raises:
        UserError: There is no set, or it is damaged.
    """
    dataset = open_dataset(DataConfig(url=url))
    read = range(min(samples, len(dataset)))
    captions = [dataset.captions_of(index) for index in read]
    contents = {
        dataset.entry(index).key: Content(
            image=_image_digest(dataset, index),
            captions=tuple(comparable(caption) for caption in captions[index]),
            rest="",
            size=None,
        )
        for index in read
    }
    files = [one.image for one in contents.values() if one.image is not None]
    return Inspection(
        url=url,
        manifest=dataset.manifest,
        attributes=_attributes(dataset, read),
        captions=_statistics(captions),
        images=image_statistics(dataset, _evenly_spaced(len(read), images)),
        equal_images=len(files) - len(set(files)),
        overlap=_overlap(dataset, read, contents),
        examples=tuple(
            Example(
                dataset.entry(index).key, dataset.caption(index), dataset.entry(index).attributes
            )
            for index in _evenly_spaced(len(read), examples)
        ),
        unlisted=tuple(
            name for name in unlisted_files(dataset.stored, storage.sizes(url)) if name not in LISTS
        ),
    )


def contact_sheet(dataset: Dataset, n: int, *, columns: int = 8, side: int = 128) -> Image.Image:
    """A grid of `n` evenly spaced images with captions, scaled to fit `side` x `side` pixels.

    Other images of a sample, such as hints, stand beside it; those of joined sets too.

    Raises:
        UserError: The set has no images, or one is damaged.
    """
    cells = [
        GridCell([sample_images(dataset, index)], dataset.caption(index))
        for index in _evenly_spaced(len(dataset), n)
    ]
    return image_grid(in_columns(cells, columns), tile=side)


def sample_images(dataset: Dataset, index: int) -> list[Image.Image]:
    """The image of a sample, if it has one, and its other images by name.

    Raises:
        UserError: It has none, or one is damaged.
    """
    entry, members = dataset.entry(index), dataset.members(index)
    own = [one for one in IMAGE_EXTENSIONS if one in members][:1]
    others = sorted(one for one in members if one.rpartition(".")[2] in IMAGE_EXTENSIONS)
    found = [*own, *(one for one in others if "." in one)]
    if not found:
        raise UserError(f"{dataset.config.url}: '{entry.key}' has no image")
    image = dataset.config.image
    limit = image.max_pixels if image else 50_000_000
    return [
        open_rgb(
            dataset.member(index, one), f"{dataset.config.url}: {entry.key}.{one}", max_pixels=limit
        )
        for one in found
    ]


def _image_digest(dataset: Dataset, index: int) -> str | None:
    extension = image_extension(dataset, index)
    return None if extension is None else sha256(dataset.member(index, extension))


def _overlap(
    dataset: Dataset, read: Sequence[int], contents: Mapping[str, Content]
) -> dict[str, SplitOverlap]:
    images = {key: one.model_copy(update={"captions": ()}) for key, one in contents.items()}
    captions = {key: one.model_copy(update={"image": None}) for key, one in contents.items()}
    parts = {dataset.entry(index).key: dataset.parts(index) for index in read}
    found = {}
    for name, split in dataset.manifest.splits.items():
        part = {key: one.get(name) for key, one in parts.items()}
        keys = Split(
            description=split.description,
            train=tuple(key for key in part if part[key] == "train"),
            test=tuple(key for key in part if part[key] == "test"),
        )
        found[name] = SplitOverlap(overlap(keys, images), overlap(keys, captions))
    return found


def _evenly_spaced(size: int, count: int) -> list[int]:
    return np.unique(np.linspace(0, size - 1, min(size, count)).astype(int)).tolist()


def _attributes(dataset: Dataset, read: Sequence[int]) -> dict[str, dict[str, int]]:
    """From the manifest or, of an attribute with many values, from the samples that are read."""
    known = dataset.manifest.attributes
    counts: dict[str, Counter[str]] = {name: Counter() for name in known}
    for name, one in known.items():
        for value, count in one.values or ():
            counts[name][str(value)] += count
    for index in read:
        for name, each in dataset.entry(index).attributes.items():
            if each is not None and known[name].values is None:
                counts[name][str(each)] += 1
    common = {name: dict(counter.most_common(_COMMON)) for name, counter in counts.items()}
    return {name: values for name, values in common.items() if values}


def _statistics(captions: Sequence[tuple[str, ...]]) -> CaptionStatistics:
    """Of the captions of each sample."""
    every = [caption for one in captions for caption in one]
    words = [caption.lower().split() for caption in every]
    lengths = [len(one) for one in words]
    counts = Counter(word for one in words for word in one)
    return CaptionStatistics(
        read=len(every),
        samples=len(captions),
        several=sum(len(one) > 1 for one in captions),
        distinct=len(set(every)),
        words_mean=sum(lengths) / len(lengths),
        words_max=max(lengths),
        characters_max=max(map(len, every)),
        vocabulary=len(counts),
        common=dict(counts.most_common(_COMMON)),
    )
