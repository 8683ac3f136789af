"""The order of samples: pure functions of (seed, epoch).

Permutations sort the raw output of a keyed Philox counter, which NumPy guarantees not to change.
`Generator.permutation` has no such guarantee, and a resumed run must find its order again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

_SHARDS, _BLOCKS, _SAMPLE, _CAPTION, _CROP, _BATCHES, _SUBSTITUTE = 1, 2, 3, 4, 5, 6, 7
_LANE_BITS = 32
"""The random numbers of a block are keyed by its number, and above these bits by its lane's."""


def _bits(domain: int, seed: int, epoch: int, index: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([domain, seed, epoch, index]))


def _permutation(size: int, bits: np.random.Philox) -> NDArray[np.int64]:
    return np.argsort(bits.random_raw(size), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class ShardOrder:
    """An epoch's permutation of S shards, and the sequence of their samples."""

    shards: NDArray[np.int64]
    """(S,) in the order of the epoch."""
    ends: NDArray[np.int64]
    """(S,): where each one ends in the sequence."""
    offsets: NDArray[np.int64]
    """(S,): what is added to a place in the sequence for the index of the sample there."""

    @classmethod
    def of(cls, shard_sizes: Sequence[int], seed: int, epoch: int) -> "ShardOrder":
        """Of shards with these numbers of samples."""
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        shards = _permutation(len(sizes), _bits(_SHARDS, seed, epoch, 0))
        ends = np.cumsum(sizes[shards])
        return cls(shards, ends, np.cumsum(sizes)[shards] - ends)

    def samples(self, first: int, last: int, shards: slice) -> NDArray[np.int64]:
        """The indices at [first, last) of the sequence, all of these shards."""
        positions = np.arange(first, last)
        shard = np.searchsorted(self.ends[shards], positions, side="right")
        return positions + self.offsets[shards][shard]


class Lane:
    """The samples [first, last) of an epoch's sequence of shards, shuffled within blocks of shards.

    Its first and last shard may be shared with the lanes beside it. A block is permuted when it is
    read, so that nothing grows with the number of samples.
    """

    def __init__(self, order: "EpochOrder", number: int, first: int, last: int) -> None:
        self._order, self._number, self._first = order, number, first
        self.length = last - first
        """Samples of the lane."""
        self._block = lru_cache(maxsize=1)(self._permuted)

    @cached_property
    def blocks(self) -> list[NDArray[np.int64]]:
        """The shards that are read at the same time, block after block."""
        return [self._order.shards.shards[part] for part in self._parts]

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """Where each block ends in the lane."""
        last = np.array([part.stop - 1 for part in self._parts], dtype=np.int64)
        return np.minimum(self._order.shards.ends[last] - self._first, self.length)

    @cached_property
    def _parts(self) -> list[slice]:
        """The blocks, as parts of the epoch's shards."""
        order, block = self._order, self._order.block
        # a single lane has the empty shards at its ends too, as the orders of earlier versions
        start, stop = 0, len(order.shards.shards)
        if len(order.lanes) > 1:
            inside = (self._first, self._first + max(self.length - 1, 0))
            start, stop = np.searchsorted(order.shards.ends, inside, side="right").tolist()
            stop += 1 if self.length else 0
        return [slice(at, min(at + block, stop)) for at in range(start, stop, block)]

    def block_at(self, place: int) -> int:
        """The number of the block of a sample, which is given by its place in the lane."""
        return int(np.searchsorted(self.ends, place, side="right"))

    def samples(self, start: int, stop: int) -> NDArray[np.int64]:
        """The indices of the samples at [start, stop) of the lane."""
        found = [np.zeros(0, dtype=np.int64)]
        while start < stop:
            number = self.block_at(start)
            begin, end = self._extent(number)
            found.append(self._block(number)[start - begin : min(stop, end) - begin])
            start = end
        return np.concatenate(found)

    def _extent(self, number: int) -> tuple[int, int]:
        return int(self.ends[number - 1]) if number else 0, int(self.ends[number])

    def _permuted(self, number: int) -> NDArray[np.int64]:
        order, (begin, end) = self._order, self._extent(number)
        first = self._first
        samples = order.shards.samples(first + begin, first + end, self._parts[number])
        key = number + (self._number << _LANE_BITS)
        return samples[_permutation(len(samples), _bits(_BLOCKS, order.seed, order.epoch, key))]


class EpochOrder:
    """The order of an epoch of N samples, which are indexed shard after shard.

    The shards are permuted, and the sequence of their samples is cut into `lanes` equal parts (the
    first N % lanes have one sample more). A lane shuffles its samples within each block of `block`
    shards. Position p of the epoch is place p // lanes of lane p % lanes.

    `shard_sizes` are the numbers of samples of the shards; `seed` and `epoch` are at least 0.
    """

    def __init__(
        self, shard_sizes: Sequence[int], seed: int, epoch: int, block: int, lanes: int = 1
    ) -> None:
        self.seed, self.epoch, self.block = seed, epoch, block
        self.shards = ShardOrder.of(shard_sizes, seed, epoch)
        self.count = sum(shard_sizes)
        """N."""
        whole, rest = divmod(self.count, lanes)
        cuts = [number * whole + min(number, rest) for number in range(lanes + 1)]
        self.lanes = [Lane(self, number, cuts[number], cuts[number + 1]) for number in range(lanes)]

    @property
    def samples(self) -> NDArray[np.int64]:
        """The whole order (N,)."""
        found = np.empty(self.count, dtype=np.int64)
        for number, lane in enumerate(self.lanes):
            found[number :: len(self.lanes)] = lane.samples(0, lane.length)
        return found


def batch_permutation(count: int, seed: int, epoch: int, block: int) -> NDArray[np.int64]:
    """The order of the batches of a block of shards, where batches are put together there."""
    return _permutation(count, _bits(_BATCHES, seed, epoch, block))


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of a sample's augmentation in an epoch, in whichever process it is loaded."""
    return np.random.Generator(_bits(_SAMPLE, seed, epoch, index))


def draw(count: int, seed: int, epoch: int, index: int) -> int:
    """One of `count` captions of a sample in an epoch, independent of its augmentation."""
    return int(_bits(_CAPTION, seed, epoch, index).random_raw()) % count


def crop_draws(count: int, seed: int, epoch: int, index: int) -> tuple[float, ...]:
    """Numbers in [0, 1) of a sample's crop in an epoch, independent of its other augmentation."""
    raw = _bits(_CROP, seed, epoch, index).random_raw(count)
    return tuple(((raw >> np.uint64(11)) * 2.0**-53).tolist())


def substitutes(place: int, count: int, seed: int, epoch: int, index: int) -> list[int]:
    """The other places of a shard of `count` samples, in the order to try them in.

    `place` is that of the damaged sample, and `index` its number in the set.
    """
    order = _permutation(count, _bits(_SUBSTITUTE, seed, epoch, index))
    return [one for one in order.tolist() if one != place]
