"""Which bucket each selected sample of a set is in."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.buckets.shapes import bucket_shapes, cut_off, nearest
from data_pipeline.buckets.sizes import image_sizes
from data_pipeline.geometry.config import BucketConfig
from data_pipeline.geometry.frame import Shape
from data_pipeline.selection import Selected
from data_pipeline.sets.bounded_cache import BoundedCache
from data_pipeline.sets.survey import Answer, Survey
from mezzotint.common.errors import UserError

_MEMORY = 16 << 20
_MILLION = 1_000_000


@dataclass(frozen=True)
class BucketUse:
    """A bucket and its samples."""

    shape: Shape
    samples: int
    cut_off: float
    """Mean share of the area of its images that is cut off; where images are padded instead, of
    the shape that is white."""


class Buckets:
    """The buckets of the selected samples of a set.

    What is kept in memory are counts of each shard, and the buckets of the samples of a few.

    Raises:
        UserError: The indexes have no width and height of a sample.
    """

    def __init__(self, survey: Survey, selected: Selected, size: int, config: BucketConfig) -> None:
        self.shapes, self.window = bucket_shapes(size, config), config.window
        self._survey, self._selected = survey, selected
        self._indexes, self._url = survey.stored.indexes, survey.stored.url
        self._kept: BoundedCache[NDArray[np.int8]] = BoundedCache(_MEMORY, _bytes)
        self.counts = self._ask("buckets", self._counted)
        """(S, K): the selected samples of every shard in each bucket."""

    @property
    def described(self) -> str:
        """The shapes as text."""
        return " ".join(f"{shape.width}x{shape.height}" for shape in self.shapes)

    def of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The buckets of samples by their numbers, (n,)."""
        ends, sizes = self._selected.ends, self._selected.sizes
        shards = np.searchsorted(ends, samples, side="right")
        found = np.empty(len(samples), dtype=np.int64)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            buckets = self._kept.get(shard, self._of_shard)
            found[here] = buckets[samples[here] - (ends[shard] - sizes[shard])]
        return found

    def uses(self) -> list[BucketUse]:
        """Every bucket; reads all indexes once more, unless this node keeps what was found."""
        cut = self._ask("cut off", self._cut_off).sum(axis=0).tolist()
        samples = self.counts.sum(axis=0).tolist()
        rows = zip(self.shapes, samples, cut, strict=True)
        return [BucketUse(shape, one, part / _MILLION / max(one, 1)) for shape, one, part in rows]

    def _ask(self, what: str, answer: Answer) -> NDArray[np.int64]:
        """(S, K); 0 of shards without selected samples."""
        found = np.zeros((len(self._selected.sizes), len(self.shapes)), dtype=np.int64)
        shards = self._selected.shards
        question = f"{what} {self.described} of {self._selected.described}"
        found[shards] = self._survey.of(shards, question, answer)
        return found

    def _counted(self, shard: int) -> NDArray[np.int64]:
        return np.bincount(self._of_shard(shard), minlength=len(self.shapes))

    def _cut_off(self, shard: int) -> NDArray[np.int64]:
        """(K,): summed over the samples, in millionths of an image."""
        sizes, buckets = self._sizes(shard), self._of_shard(shard)
        parts = [
            cut_off(sizes[buckets == number], shape).sum()
            for number, shape in enumerate(self.shapes)
        ]
        return np.rint(np.array(parts) * _MILLION).astype(np.int64)

    def _of_shard(self, shard: int) -> NDArray[np.int8]:
        return nearest(self._sizes(shard), self.shapes).astype(np.int8)

    def _sizes(self, shard: int) -> NDArray[np.int64]:
        index, rows = self._indexes.of(shard), self._selected.rows(shard)
        sizes = image_sizes(index, rows)
        missing = np.flatnonzero((sizes <= 0).any(axis=1))
        if missing.size:
            key = index.keys[int(rows[missing[0]])]
            raise UserError(
                f"{self._url}: data.image.buckets needs the width and height of every image, and "
                f"the index has none of '{key}'; write them with `mezzotint data index "
                f"{self._url} --image-sizes`"
            )
        return sizes


def _bytes(buckets: NDArray[np.int8]) -> int:
    return buckets.nbytes
