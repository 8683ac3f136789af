"""The order of samples, as pure functions of (seed, epoch).

Randomness comes straight from a keyed Philox counter, whose raw output NumPy guarantees for good;
``Generator.permutation`` carries no such promise, and a resumed run must find its old order.
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
    """The shards of an epoch in reading order, cut into blocks of ``block`` shards."""
    permuted = _permutation(shards, _bits(_SHARDS, seed, epoch, 0))
    return [permuted[start : start + block] for start in range(0, shards, block)]


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, block: int) -> NDArray[np.int64]:
    """A permutation of all samples: shards are permuted, then shuffled in blocks.

    Samples are numbered shard after shard. While block after block is read, only ``block``
    shards have to be at hand, whatever the size of the set.

    Args:
        shard_sizes: Samples of each shard.
        seed: Seed of the run, at least 0.
        epoch: Epoch, at least 0.
        block: Shards per block, at least 1.

    Returns:
        (N,) sample numbers, every one once.
    """
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    parts = []
    for number, shards in enumerate(shard_blocks(len(sizes), seed, epoch, block)):
        members = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards])
        parts.append(members[_permutation(len(members), _bits(_BLOCKS, seed, epoch, number))])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of sample ``index``'s augmentations in ``epoch``, whoever loads it."""
    return np.random.Generator(_bits(_SAMPLE, seed, epoch, index))
