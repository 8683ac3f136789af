"""The order of samples: pure functions of (seed, epoch).

Permutations sort the raw output of a keyed Philox counter, which NumPy guarantees not to change.
`Generator.permutation` has no such guarantee, and a resumed run must find its order again.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_SHARDS, _BLOCKS, _SAMPLE = 1, 2, 3


def _bits(domain: int, seed: int, epoch: int, index: int) -> np.random.Philox:
    return np.random.Philox(np.random.SeedSequence([domain, seed, epoch, index]))


def _permutation(size: int, bits: np.random.Philox) -> NDArray[np.int64]:
    return np.argsort(bits.random_raw(size), kind="stable").astype(np.int64)


def shard_blocks(shards: int, seed: int, epoch: int, block: int) -> list[NDArray[np.int64]]:
    """The shards of an epoch in reading order, in blocks of `block` shards."""
    permuted = _permutation(shards, _bits(_SHARDS, seed, epoch, 0))
    return [permuted[start : start + block] for start in range(0, shards, block)]


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, block: int) -> NDArray[np.int64]:
    """A permutation (N,) of all samples: shards are permuted, then samples within each block.

    Samples are indexed shard after shard. Reading an epoch needs `block` shards at a time.

    Args:
        shard_sizes: Samples of each shard.
        seed: Seed of the run, at least 0.
        epoch: At least 0.
        block: Shards per block, at least 1.
    """
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    parts = []
    for number, shards in enumerate(shard_blocks(len(sizes), seed, epoch, block)):
        members = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards])
        parts.append(members[_permutation(len(members), _bits(_BLOCKS, seed, epoch, number))])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of a sample's augmentation in an epoch, in whichever process it is loaded."""
    return np.random.Generator(_bits(_SAMPLE, seed, epoch, index))
