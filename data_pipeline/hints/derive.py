"""Sets of hints, made from a set's images by a detector."""

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from data_pipeline.config import DataConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.derive import finished_set, write_derived
from data_pipeline.hints.config import DetectorConfig
from data_pipeline.hints.detect import detect, encoded
from data_pipeline.manifest import Manifest
from mezzotint.common.errors import UserError

Progress = Callable[[int, int], None]
_BLOCK = 256
"""Hints in memory at a time."""


def derive_hints(
    data: DataConfig,
    out: str,
    detector: DetectorConfig,
    *,
    name: str | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Make the hint `KEY.NAME.png` of every sample of a set, at the size of `data.image`.

    `name` is the detector's kind where it is not given, `workers` the number of cores. The set
    written carries the detector's record; captions, splits and attributes are those of the source.
    A finished set of the same source, preprocessing and detector is left as it is.

    Raises:
        UserError: an image is damaged, or there is a set at `out` that was not derived.
    """
    if data.image is None:
        raise UserError("data.image is not set: hints are made from images of a size; set it")
    if data.image.flip:
        raise UserError("data.image.flip: images are mirrored in training only; leave it out")
    member = f"{name or detector.kind}.png"
    dataset = open_dataset(data)
    finished = finished_set(dataset, out, None, detector.record)
    if finished is not None and member in finished.fields:
        return finished
    return write_derived(
        dataset,
        out,
        _members(dataset, detector, member, workers or os.cpu_count() or 1, progress),
        name=f"{dataset.manifest.name}-{member.removesuffix('.png')}",
        fields={member: f"hint: {detector.record}"},
        detector=detector.record,
    )


def _members(
    dataset: Dataset,
    detector: DetectorConfig,
    member: str,
    workers: int,
    progress: Progress | None,
) -> Iterator[Mapping[str, bytes]]:
    def make(index: int) -> bytes:
        image = dataset.sample(index).image
        assert image is not None, "data.image is set"
        return encoded(detect(detector, image))

    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(dataset), _BLOCK):
            indices = range(start, min(start + _BLOCK, len(dataset)))
            for content in pool.map(make, indices):
                yield {member: content}
            if progress is not None:
                progress(indices.stop, len(dataset))
