"""A rank's part of the batches of one shape."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from data_pipeline.buckets.assignment import Buckets
from data_pipeline.buckets.order import BucketBatch, BucketOrder
from data_pipeline.geometry.frame import Shape
from data_pipeline.sample_order import EpochOrder
from mezzotint.common.digests import sha256

SampleRef = tuple[int, int]
"""(epoch, sample index)."""


class ShardedSamples(Protocol):
    """What shards are fetched of."""

    shard_sizes: tuple[int, ...]
    fingerprint: str

    def __len__(self) -> int: ...
    def prefetch(self, shards: Sequence[int]) -> None: ...


class BucketedBatches:
    """The batches of a rank, without an end; raises as `BucketOrder`."""

    def __init__(
        self,
        dataset: ShardedSamples,
        buckets: Buckets,
        global_batch: int,
        epoch_order: Callable[[int], EpochOrder],
    ) -> None:
        self._dataset, self._shapes = dataset, buckets.shapes
        shapes = f"{buckets.described} of {global_batch} in {buckets.window} blocks"
        self.fingerprint = sha256(f"{dataset.fingerprint} {shapes}")
        """Digest of what the order depends on, besides the seed."""
        self.order = BucketOrder(
            buckets.counts, buckets.of, global_batch, buckets.window, epoch_order
        )
        self._shard_ends = np.cumsum(dataset.shard_sizes)

    def refs(self, number: int, first: int, last: int) -> Iterator[tuple[Shape, list[SampleRef]]]:
        """Shape and samples [first, last) of global batch `number` and those that follow.

        The shards of the next batch, of the block that it is read in, and of the block behind that
        are fetched ahead.
        """
        batch = self.order.batch(number)
        refs = self.order.samples(batch, first, last)
        fetched: dict[int, None] = {}
        while True:
            number += 1
            following = self.order.batch(number)
            ahead = self.order.samples(following, first, last)
            wanted = dict.fromkeys([*self._of_block(following), *self._shards(refs + ahead)])
            new = [shard for shard in wanted if shard not in fetched]
            if new:
                self._dataset.prefetch(new)
            fetched = wanted
            yield self._shapes[batch.bucket], refs
            batch, refs = following, ahead

    def _of_block(self, batch: BucketBatch) -> list[int]:
        """The shards of a batch's block and of the next."""
        epoch, block = batch.block
        order = self.order.epoch(epoch)
        return order.shards(block) + order.shards(block + 1)

    def _shards(self, refs: list[SampleRef]) -> list[int]:
        """The shards of samples."""
        indices = np.array([index for _, index in refs], dtype=np.int64)
        return np.unique(np.searchsorted(self._shard_ends, indices, side="right")).tolist()
