"""The order of samples: pure functions of (seed, epoch).

Permutations sort the raw output of a keyed Philox counter, which NumPy guarantees not to change.
`Generator.permutation` has no such guarantee, and a resumed run must find its order again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SHARDS, _BLOCKS, _SAMPLE, _CAPTION = 1, 2, 3, 4


def _bits(domain: int, seed: int, epoch: int, index: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([domain, seed, epoch, index]))


def _permutation(size: int, bits: np.random.Philox) -> NDArray[np.int64]:
    return np.argsort(bits.random_raw(size), kind="stable").astype(np.int64)


@dataclass(frozen=True)
class EpochOrder:
    """The order of an epoch of N samples, which are indexed shard after shard."""

    samples: NDArray[np.int64]
    """(N,), a permutation."""
    blocks: list[NDArray[np.int64]]
    """The shards that are read at the same time, block after block."""
    ends: NDArray[np.int64]
    """End of each block in `samples`."""


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, block: int) -> EpochOrder:
    """Permute the shards, and shuffle the samples within each block of `block` shards.

    `shard_sizes` are the numbers of samples of the shards; `seed` and `epoch` are at least 0.
    """
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    shards = _permutation(len(sizes), _bits(_SHARDS, seed, epoch, 0))
    blocks = [shards[start : start + block] for start in range(0, len(shards), block)]
    samples = [np.zeros(0, dtype=np.int64)]
    for number, members in enumerate(blocks):
        block_samples = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in members])
        permuted = _permutation(len(block_samples), _bits(_BLOCKS, seed, epoch, number))
        samples.append(block_samples[permuted])
    ends = np.cumsum([len(one) for one in samples[1:]])
    return EpochOrder(np.concatenate(samples), blocks, ends)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of a sample's augmentation in an epoch, in whichever process it is loaded."""
    return np.random.Generator(_bits(_SAMPLE, seed, epoch, index))


def draw(count: int, seed: int, epoch: int, index: int) -> int:
    """One of `count` captions of a sample in an epoch, independent of its augmentation."""
    return int(_bits(_CAPTION, seed, epoch, index).random_raw()) % count
