"""The order of batches of one shape: a pure function of seed, epoch and batch size.

Positions are those of an order without buckets: global batch g is the positions [gB, (g+1)B) of the
epochs one after the other, so that the state of a stream is the same two numbers. Which samples
stand there is decided here. An epoch is read in windows of several blocks of shards. In a window
each bucket's samples follow in the order of the epoch, and fill batches; what is left of every
bucket at the end fills batches together, from the tallest to the widest, in the shape of the sample
in the middle. So every sample is read once an epoch, all batches are whole, and no shard is read
outside of its window. A batch that two windows share has the shape of the fullest bucket.
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
    """Consecutive samples of a bucket in a window."""

    window: tuple[int, int]
    """The epoch, and the number in it."""
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


class Window:
    """The batches of the samples of several blocks of an epoch, in K buckets.

    `ends` (J, K) are the samples of each bucket up to the end of each block; `first` is the
    position of the window in the stream. The first samples complete the batch that the window
    before began, and the last begin one that the next window completes.
    """

    def __init__(
        self,
        epoch: "EpochBuckets",
        number: int,
        first_block: int,
        ends: NDArray[np.int64],
        first: int,
    ) -> None:
        self._epoch, self._ends = epoch, ends
        self.first_block = first_block
        """Of the epoch's."""
        self._key = (epoch.order.epoch, number)
        self._batch = batch = epoch.batch_size
        self._sizes = sizes = ends[-1]
        self.head = self._share(-first % batch, sizes)
        """(K,): the samples of each bucket that complete a batch."""
        last = first + int(sizes.sum())
        self.tail = self._share(last % batch, sizes - self.head)
        """(K,): those that begin one."""
        middle = sizes - self.head - self.tail
        self._own = middle // batch
        self.rest = middle % batch
        """(K,): samples that share batches with those of other buckets."""
        self.number = int(middle.sum()) // batch
        """Batches of the window alone."""
        self._batches = lru_cache(maxsize=_BLOCKS)(self._of_block)

    def _share(self, wanted: int, there: NDArray[np.int64]) -> NDArray[np.int64]:
        """So many samples, of the fullest bucket, then of those beside it; (K,)."""
        found = np.zeros_like(there)
        fullest = self._epoch.fullest
        for bucket in sorted(range(len(there)), key=lambda one: abs(one - fullest)):
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
        """One of the `number` batches of the window alone."""
        block = int(np.searchsorted(self._batch_ends, number, side="right"))
        before = int(self._batch_ends[block - 1]) if block else 0
        return self._batches(block)[number - before]

    def _of_block(self, block: int) -> list[BucketBatch]:
        """The batches that are whole when a block ends, in the order in which they are read."""
        order, size = self._epoch.order, self._batch
        place = (order.epoch, self.first_block + block)
        before = self._completed[block - 1] if block else np.zeros_like(self._own)
        found: list[BucketBatch] = []
        for bucket, (begin, end) in enumerate(
            zip(before.tolist(), self._completed[block].tolist(), strict=True)
        ):
            start = int(self.head[bucket])
            for number in range(begin, end):
                run = Run(self._key, bucket, start + number * size, start + (number + 1) * size)
                found.append(BucketBatch(bucket, (run,), place))
        if block == len(self._ends) - 1:
            found += [BucketBatch(*merged, place) for merged in self.merged()]
        permuted = batch_permutation(len(found), order.seed, *place)
        return [found[number] for number in permuted.tolist()]

    def merged(self) -> Iterator[tuple[int, tuple[Run, ...]]]:
        """The batches of what is left of every bucket: their bucket and runs."""
        size, ends = self._batch, np.cumsum(self.rest)
        starts = self.head + self._own * size
        for first in range(0, int(ends[-1]), size):
            runs = []
            for bucket in np.flatnonzero(self.rest).tolist():
                begin = int(ends[bucket] - self.rest[bucket])
                low, high = max(first, begin), min(first + size, int(ends[bucket]))
                if low < high:
                    at = int(starts[bucket]) - begin
                    runs.append(Run(self._key, bucket, at + low, at + high))
            middle = int(np.searchsorted(ends, first + size // 2, side="right"))
            yield middle, tuple(runs)

    @property
    def elsewhere(self) -> NDArray[np.int64]:
        """(K,): the samples of each bucket that are read in the shape of another."""
        found = self.head + self.tail
        found[self._epoch.fullest] = 0
        for bucket, runs in self.merged():
            for run in runs:
                found[run.bucket] += (run.end - run.first) * (run.bucket != bucket)
        return found

    @property
    def heads(self) -> tuple[Run, ...]:
        """The samples that complete the batch that the window before began."""
        return self._runs(np.zeros_like(self.head), self.head)

    @property
    def tails(self) -> tuple[Run, ...]:
        """The samples that begin a batch that the next window completes."""
        return self._runs(self._sizes - self.tail, self._sizes)

    def _runs(self, first: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[Run, ...]:
        some = np.flatnonzero(end > first).tolist()
        return tuple(Run(self._key, one, int(first[one]), int(end[one])) for one in some)

    def samples(self, run: Run) -> NDArray[np.int64]:
        """The indices of a run's samples."""
        ends, at = self._ends[:, run.bucket], run.first
        found = [np.zeros(0, dtype=np.int64)]
        while at < run.end:
            block = int(np.searchsorted(ends, at, side="right"))
            before = int(ends[block - 1]) if block else 0
            samples = self._epoch.by_bucket(self.first_block + block)[run.bucket]
            found.append(samples[at - before : run.end - before])
            at = int(ends[block])
        return np.concatenate(found)


class EpochBuckets:
    """The windows of an epoch.

    `counts` (S, K) are the samples of every shard in each bucket. A window has `blocks` blocks and
    at least two batches; what is left behind the last one joins it.
    """

    def __init__(
        self,
        order: EpochOrder,
        counts: NDArray[np.int64],
        bucket_of: BucketOf,
        batch: int,
        blocks: int,
    ) -> None:
        self.order, self.batch_size, self._bucket_of = order, batch, bucket_of
        self._buckets = counts.shape[1]
        self.fullest = int(np.argmax(counts.sum(axis=0)))
        """The bucket with most samples, in every epoch."""
        (self._lane,) = order.lanes
        per_block = [counts[shards].sum(axis=0) for shards in self._lane.blocks]
        self._ends = np.cumsum(np.array(per_block, dtype=np.int64), axis=0)
        """(J, K): of blocks."""
        self._cuts = self._windows(blocks)
        """The block that each window begins with, and behind the last one."""
        totals = self._ends.sum(axis=1)
        self.window_ends = totals[np.array(self._cuts[1:]) - 1]
        """Where each window ends in the epoch, in samples."""
        self.by_bucket = lru_cache(maxsize=_BLOCKS)(self._sorted)
        self.window = lru_cache(maxsize=_BLOCKS)(self._window)

    def _windows(self, blocks: int) -> list[int]:
        totals, cuts = self._ends.sum(axis=1), [0]
        while True:
            begin = int(totals[cuts[-1] - 1]) if cuts[-1] else 0
            enough = int(np.searchsorted(totals, begin + 2 * self.batch_size)) + 1
            cut = max(cuts[-1] + blocks, enough)
            if cut > len(totals) or totals[-1] - totals[cut - 1] < 2 * self.batch_size:
                return [*cuts, len(totals)]
            cuts.append(cut)

    def _window(self, number: int) -> Window:
        begin, end = self._cuts[number : number + 2]
        before = self._ends[begin - 1] if begin else np.zeros(self._buckets, dtype=np.int64)
        first = self.order.epoch * self.order.count + int(before.sum())
        return Window(self, number, begin, self._ends[begin:end] - before, first)

    @property
    def elsewhere(self) -> NDArray[np.int64]:
        """(K,): the samples of each bucket that are read in the shape of another."""
        found = np.zeros(self._buckets, dtype=np.int64)
        for number in range(len(self.window_ends)):
            found += self._window(number).elsewhere
        return found

    def shards(self, block: int) -> list[int]:
        """Those of a block; none behind the last one."""
        blocks = self._lane.blocks
        return blocks[block].tolist() if block < len(blocks) else []

    def _sorted(self, block: int) -> list[NDArray[np.int64]]:
        """The samples of a block in each bucket, in the order of the epoch."""
        ends = self._lane.ends
        samples = self._lane.samples(int(ends[block - 1]) if block else 0, int(ends[block]))
        buckets = self._bucket_of(samples)
        order = np.argsort(buckets, kind="stable")
        cuts = np.cumsum(np.bincount(buckets, minlength=self._buckets))[:-1]
        return np.split(samples[order], cuts)


class BucketOrder:
    """The endless sequence of global batches.

    `counts` (S, K) are the samples of every shard in each bucket; `epoch_order` is the order of an
    epoch in one lane; `blocks` are those of a window.

    Raises:
        UserError: An epoch has less than two batches.
    """

    def __init__(
        self,
        counts: NDArray[np.int64],
        bucket_of: BucketOf,
        batch: int,
        blocks: int,
        epoch_order: Callable[[int], EpochOrder],
    ) -> None:
        self._batch, self._count = batch, int(counts.sum())
        if self._count < 2 * batch:
            raise UserError(
                f"data.image.buckets: batches of {batch} are more than half of the "
                f"{self._count:,} samples that are selected; choose a smaller batch"
            )
        self.epoch = lru_cache(maxsize=3)(
            lambda epoch: EpochBuckets(epoch_order(epoch), counts, bucket_of, batch, blocks)
        )

    def batch(self, number: int) -> BucketBatch:
        """The global batch at positions [number B, (number + 1) B)."""
        epoch, place = divmod(number * self._batch, self._count)
        ends = self.epoch(epoch).window_ends
        key = epoch, int(np.searchsorted(ends, place, side="right"))
        window = self._window(key)
        if place + self._batch > ends[key[1]]:
            following = (epoch, key[1] + 1) if key[1] + 1 < len(ends) else (epoch + 1, 0)
            joined = self._window(following)
            runs = window.tails + joined.heads
            return BucketBatch(self.epoch(epoch).fullest, runs, (following[0], joined.first_block))
        begin = int(ends[key[1] - 1]) if key[1] else 0
        return window.batch((place - begin - int(window.head.sum())) // self._batch)

    def samples(self, batch: BucketBatch, first: int, last: int) -> list[tuple[int, int]]:
        """Epoch and index of the samples [first, last) of a batch."""
        found: list[tuple[int, int]] = []
        begin = 0
        for run in batch.runs:
            low, high = max(first - begin, 0), min(last - begin, run.end - run.first)
            begin += run.end - run.first
            if low < high:
                part = run._replace(first=run.first + low, end=run.first + high)
                indices = self._window(run.window).samples(part).tolist()
                found += [(run.window[0], index) for index in indices]
        return found

    def _window(self, key: tuple[int, int]) -> Window:
        return self.epoch(key[0]).window(key[1])
