"""The order of batches of one shape: a pure function of seed, epoch and batch size.

Positions are those of an order without buckets: global batch g is the positions [gB, (g+1)B) of the
epochs one after the other, so that the state of a stream is the same two numbers. Which samples
stand there is decided here. Each bucket's samples follow in the order of the epoch, and fill
batches; what is left of every bucket at the end of an epoch fills batches together, from the
tallest to the widest, in the shape of the sample in the middle. So every sample is read once an
epoch and all batches are whole. A batch that two epochs share has the shape of the fullest bucket.
"""

from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.sample_order import EpochOrder, batch_permutation
from mezzotint.common.errors import UserError

BucketOf = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""The bucket of each sample of these indices."""
_BLOCKS = 8
"""Blocks whose samples are kept."""


class Run(NamedTuple):
    """Consecutive samples of a bucket in the order of an epoch."""

    epoch: int
    bucket: int
    first: int
    end: int


class BucketBatch(NamedTuple):
    """A global batch."""

    bucket: int
    """Whose shape its images have."""
    runs: tuple[Run, ...]
    block: tuple[int, int]
    """The epoch, and the block of its order, that the batch is read in."""


class EpochBuckets:
    """The batches of an epoch of N samples in K buckets.

    `counts` (S, K) are the samples of every shard in each bucket. Of the N samples `head` complete
    the batch that the epoch before began, and `tail` begin one that the next epoch completes.
    """

    def __init__(
        self, order: EpochOrder, counts: NDArray[np.int64], bucket_of: BucketOf, batch: int
    ) -> None:
        self._order, self._bucket_of, self._batch = order, bucket_of, batch
        first = order.epoch * order.count
        (self._lane,) = order.lanes
        per_block = [counts[shards].sum(axis=0) for shards in self._lane.blocks]
        self._ends = np.cumsum(np.array(per_block, dtype=np.int64), axis=0)
        sizes = self._ends[-1]
        self.fullest = int(np.argmax(sizes))
        """The bucket with most samples."""
        self.head = self._share(-first % batch, sizes)
        """(K,): the samples of each bucket that complete a batch."""
        self.tail = self._share((first + order.count) % batch, sizes - self.head)
        """(K,): those that begin one."""
        self._sizes = sizes
        middle = sizes - self.head - self.tail
        self._own = middle // batch
        self.rest = middle % batch
        """(K,): samples that share batches with those of other buckets."""
        self.number = int(middle.sum()) // batch
        """Batches of the epoch alone."""
        self._sorted = lru_cache(maxsize=_BLOCKS)(self._by_bucket)
        self._batches = lru_cache(maxsize=_BLOCKS)(self._of_block)

    def _share(self, wanted: int, there: NDArray[np.int64]) -> NDArray[np.int64]:
        """So many samples, of the fullest bucket, then of those beside it; (K,)."""
        found = np.zeros_like(there)
        for bucket in sorted(range(len(there)), key=lambda one: abs(one - self.fullest)):
            found[bucket] = min(wanted, there[bucket])
            wanted -= int(found[bucket])
        return found

    @cached_property
    def _completed(self) -> NDArray[np.int64]:
        """(J, K): batches of each bucket that are whole when a block ends."""
        return np.clip((self._ends - self.head) // self._batch, 0, self._own)

    @cached_property
    def _batch_ends(self) -> NDArray[np.int64]:
        """(J,): batches that were read when a block ends."""
        ends = self._completed.sum(axis=1)
        ends[-1] = self.number
        return ends

    def batch(self, number: int) -> BucketBatch:
        """One of the `number` batches of the epoch alone."""
        block = int(np.searchsorted(self._batch_ends, number, side="right"))
        before = int(self._batch_ends[block - 1]) if block else 0
        return self._batches(block)[number - before]

    def _of_block(self, block: int) -> list[BucketBatch]:
        """The batches that are whole when a block ends, in the order in which they are read."""
        epoch, size, place = self._order.epoch, self._batch, (self._order.epoch, block)
        before = self._completed[block - 1] if block else np.zeros_like(self._own)
        found: list[BucketBatch] = []
        for bucket, (begin, end) in enumerate(
            zip(before.tolist(), self._completed[block].tolist(), strict=True)
        ):
            start = int(self.head[bucket])
            for number in range(begin, end):
                run = Run(epoch, bucket, start + number * size, start + (number + 1) * size)
                found.append(BucketBatch(bucket, (run,), place))
        if block == len(self._ends) - 1:
            found += [BucketBatch(*merged, place) for merged in self.merged()]
        order = batch_permutation(len(found), self._order.seed, epoch, block)
        return [found[number] for number in order.tolist()]

    def merged(self) -> Iterator[tuple[int, tuple[Run, ...]]]:
        """The batches of what is left of every bucket: their bucket and runs."""
        size, epoch = self._batch, self._order.epoch
        ends = np.cumsum(self.rest)
        starts = self.head + self._own * size
        for first in range(0, int(ends[-1]), size):
            runs = []
            for bucket in np.flatnonzero(self.rest).tolist():
                begin = int(ends[bucket] - self.rest[bucket])
                low, high = max(first, begin), min(first + size, int(ends[bucket]))
                if low < high:
                    at = int(starts[bucket]) - begin
                    runs.append(Run(epoch, bucket, at + low, at + high))
            middle = int(np.searchsorted(ends, first + size // 2, side="right"))
            yield middle, tuple(runs)

    @property
    def elsewhere(self) -> NDArray[np.int64]:
        """(K,): the samples of each bucket that are read in the shape of another."""
        found = self.head + self.tail
        found[self.fullest] = 0
        for bucket, runs in self.merged():
            for run in runs:
                found[run.bucket] += (run.end - run.first) * (run.bucket != bucket)
        return found

    @property
    def heads(self) -> tuple[Run, ...]:
        """The samples that complete the batch that the epoch before began."""
        return self._runs(np.zeros_like(self.head), self.head)

    @property
    def tails(self) -> tuple[Run, ...]:
        """The samples that begin a batch that the next epoch completes."""
        return self._runs(self._sizes - self.tail, self._sizes)

    def _runs(self, first: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[Run, ...]:
        epoch, some = self._order.epoch, np.flatnonzero(end > first).tolist()
        return tuple(Run(epoch, one, int(first[one]), int(end[one])) for one in some)

    def samples(self, run: Run) -> NDArray[np.int64]:
        """The indices of a run's samples."""
        ends, at = self._ends[:, run.bucket], run.first
        found = [np.zeros(0, dtype=np.int64)]
        while at < run.end:
            block = int(np.searchsorted(ends, at, side="right"))
            before = int(ends[block - 1]) if block else 0
            samples = self._sorted(block)[run.bucket]
            found.append(samples[at - before : run.end - before])
            at = int(ends[block])
        return np.concatenate(found)

    def shards(self, block: int) -> list[int]:
        """Those of a block; none behind the last one."""
        blocks = self._lane.blocks
        return blocks[block].tolist() if block < len(blocks) else []

    def _by_bucket(self, block: int) -> list[NDArray[np.int64]]:
        """The samples of a block in each bucket, in the order of the epoch."""
        ends = self._lane.ends
        samples = self._lane.samples(int(ends[block - 1]) if block else 0, int(ends[block]))
        buckets = self._bucket_of(samples)
        order = np.argsort(buckets, kind="stable")
        cuts = np.cumsum(np.bincount(buckets, minlength=self._ends.shape[1]))[:-1]
        return np.split(samples[order], cuts)


class BucketOrder:
    """The endless sequence of global batches.

    `counts` (S, K) are the samples of every shard in each bucket; `epoch_order` is the order of an
    epoch in one lane.

    Raises:
        UserError: An epoch has less than two batches.
    """

    def __init__(
        self,
        counts: NDArray[np.int64],
        bucket_of: BucketOf,
        batch: int,
        epoch_order: Callable[[int], EpochOrder],
    ) -> None:
        self._batch, self._count = batch, int(counts.sum())
        if self._count < 2 * batch:
            raise UserError(
                f"data.image.buckets: batches of {batch} are more than half of the "
                f"{self._count:,} samples that are selected; choose a smaller batch"
            )
        self.epoch = lru_cache(maxsize=3)(
            lambda epoch: EpochBuckets(epoch_order(epoch), counts, bucket_of, batch)
        )

    def batch(self, number: int) -> BucketBatch:
        """The global batch at positions [number B, (number + 1) B)."""
        position = number * self._batch
        number_of = position // self._count
        epoch = self.epoch(number_of)
        end = (number_of + 1) * self._count
        if position + self._batch > end:
            runs = epoch.tails + self.epoch(number_of + 1).heads
            return BucketBatch(epoch.fullest, runs, (number_of + 1, 0))
        behind_head = position - number_of * self._count - int(epoch.head.sum())
        return epoch.batch(behind_head // self._batch)

    def samples(self, batch: BucketBatch, first: int, last: int) -> list[tuple[int, int]]:
        """Epoch and index of the samples [first, last) of a batch."""
        found: list[tuple[int, int]] = []
        begin = 0
        for run in batch.runs:
            low, high = max(first - begin, 0), min(last - begin, run.end - run.first)
            begin += run.end - run.first
            if low < high:
                part = run._replace(first=run.first + low, end=run.first + high)
                indices = self.epoch(run.epoch).samples(part).tolist()
                found += [(run.epoch, index) for index in indices]
        return found
