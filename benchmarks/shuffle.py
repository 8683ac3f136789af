"""How well epochs are shuffled, beside a whole shuffle, webdataset's buffer and mosaicml's.

    peers_streams/bin/python benchmarks/shuffle.py [--json FILE]

The head of streams.py says how `peers_streams` is made. A set of 200 shards of 1,000 samples,
sorted by class (100 classes), read by 8 processes in batches of 256. `distance`: how far two
neighbours of the set are from each other in the epoch, as a part of it, on average. `classes`: how
many of the 100 classes a batch has. `deviation`: that of the mean class of a batch, relative to the
one of random batches. `autocorrelation`: of the mean classes of batches that follow one another.
"""

import argparse
import json
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from sys import path as modules

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent
modules[:0] = [str(ROOT.parent), str(ROOT)]

from data_pipeline.sample_order import EpochOrder  # noqa: E402

SHARDS, SHARD, CLASSES, BATCH, RANKS = 200, 1000, 100, 256, 8
COUNT = SHARDS * SHARD
Order = NDArray[np.int64]


def ours(lanes: int, block: int) -> Order:
    """Global batches, one after the other."""
    order = EpochOrder([SHARD] * SHARDS, 0, 0, block, lanes).samples
    whole = len(order) // BATCH * BATCH
    rows = order[:whole].reshape(-1, BATCH // lanes, lanes).transpose(0, 2, 1).reshape(-1)
    return np.concatenate([rows, order[whole:]])


def full() -> Order:
    """A permutation of all samples."""
    return np.random.default_rng(0).permutation(COUNT)


def webdataset(buffer: int) -> Order:
    """Shuffled shards, split by process, each with a buffer."""
    from webdataset.filters import _shuffle

    rng = random.Random(0)
    shards = list(range(SHARDS))
    rng.shuffle(shards)
    parts = []
    for rank in range(RANKS):
        stream = (s * SHARD + i for s in shards[rank::RANKS] for i in range(SHARD))
        parts.append(list(_shuffle(stream, buffer, min(buffer, 100), rng=random.Random(rank))))
    return _in_batches(parts)


def mosaicml(name: str) -> Order:
    """One of its algorithms, on one node."""
    from models.torchvision_compat import ensure_torchvision

    ensure_torchvision()
    from streaming.base.shuffle import get_shuffle

    sizes = np.full(SHARDS, SHARD, dtype=np.int64)
    found = get_shuffle(name, sizes, num_canonical_nodes=RANKS, seed=0, epoch=0, block_size=1 << 18)
    return _in_batches(np.array_split(np.asarray(found), RANKS))


def _in_batches(parts: list[list[int]] | list[Order]) -> Order:
    each = BATCH // RANKS
    length = min(len(part) for part in parts) // each * each
    cut = np.stack([np.asarray(part)[:length].reshape(-1, each) for part in parts], axis=1)
    rest = [np.asarray(part)[length:] for part in parts]
    return np.concatenate([cut.reshape(-1), *rest]).astype(np.int64)


def measured(order: Order) -> dict[str, float]:
    """The numbers of an order."""
    assert sorted(order.tolist()) == list(range(COUNT)), "every sample once"
    place = np.empty(COUNT, dtype=np.int64)
    place[order] = np.arange(COUNT)
    labels = order * CLASSES // COUNT
    batches = labels[: COUNT // BATCH * BATCH].reshape(-1, BATCH)
    means = batches.mean(axis=1) - (CLASSES - 1) / 2
    random_deviation = ((CLASSES**2 - 1) / 12 / BATCH) ** 0.5
    return {
        "distance": float(np.abs(np.diff(place)).mean() / COUNT),
        "classes": float(np.mean([len(np.unique(one)) for one in batches])),
        "deviation": float(means.std() / random_deviation),
        "autocorrelation": float((means[1:] * means[:-1]).mean() / np.square(means).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write everything there")
    given = parser.parse_args()
    orders: dict[str, Callable[[], Order]] = {
        "whole shuffle": full,
        "mezzotint, 1 lane of blocks of 8": lambda: ours(1, 8),
        "mezzotint, 8 lanes of blocks of 8": lambda: ours(8, 8),
        "mezzotint, 64 lanes of blocks of 2": lambda: ours(64, 2),
        "webdataset, buffer of 1,000": lambda: webdataset(1000),
        "webdataset, buffer of 10,000": lambda: webdataset(10_000),
    }
    if find_spec("streaming"):
        orders |= {
            f"mosaicml {name}": lambda name=name: mosaicml(name) for name in ("py1e", "py1s")
        }
    found = {name: measured(make()) for name, make in orders.items()}
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, row in found.items():
        print(f"{name:36}", *(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
