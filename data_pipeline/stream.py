"""An endless, exactly resumable sequence of batches for one rank."""

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data_pipeline.batch import Batch
from data_pipeline.dataset import Dataset, collate
from data_pipeline.sample_order import epoch_order, shard_blocks
from mezzotint.common import storage
from mezzotint.common.errors import UserError

_AHEAD = 4
"""Batches made ahead of the training step."""

SampleRef = tuple[int, int]
"""(epoch, sample number)."""


@dataclass(frozen=True)
class StreamState:
    """Where a stream stands. Knows no rank and no worker: a run resumes on any number of them."""

    epoch: int
    consumed: int
    """Samples of the epoch that all ranks together have consumed."""
    seed: int
    fingerprint: str
    """``Dataset.fingerprint`` of the data it belongs to."""

    def to_json(self) -> dict[str, int | str]:
        """As a plain dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> "StreamState":
        """Back from ``to_json``.

        Raises:
            UserError: Something else was given.
        """
        match dict(fields):
            case {
                "epoch": int(epoch),
                "consumed": int(consumed),
                "seed": int(seed),
                "fingerprint": str(fingerprint),
            }:
                return cls(epoch, consumed, seed, fingerprint)
        raise UserError(f"not the state of a stream: {dict(fields)}")


class Stream:
    """This rank's share of batch after batch, for ever.

    The orders of epochs 0, 1, ... follow one another without a gap; global batch g is the
    samples [gB, (g+1)B) of that sequence (a batch may span two epochs), and rank r of W takes
    the r-th of W equal parts. Every sample is seen once per epoch, whatever W is.

    Args:
        dataset: What to read.
        global_batch: B, samples of all ranks together; a multiple of ``world``.
        rank: This process.
        world: All processes.
        seed: Seed of order and augmentation.
        state: Where to go on; None: at the beginning.

    Raises:
        UserError: Impossible numbers, or a state of other data or another seed.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        global_batch: int,
        rank: int,
        world: int,
        seed: int,
        state: StreamState | None = None,
    ) -> None:
        if not (0 <= rank < world):
            raise UserError(f"rank {rank} of {world} processes: it must be 0 to {world - 1}")
        if global_batch < 1 or global_batch % world:
            raise UserError(
                f"a global batch of {global_batch} cannot be shared by {world} processes; choose "
                f"a multiple of {world}"
            )
        if seed < 0:
            raise UserError(f"seed {seed}: it must be at least 0")
        self.dataset = dataset
        self.global_batch = global_batch
        self.rank = rank
        self.world = world
        self.seed = seed
        self.state = state or StreamState(0, 0, seed, dataset.fingerprint)
        self._check_state()
        self._orders: dict[int, _Epoch] = {}

    def at(self, state: StreamState) -> "Stream":
        """The same stream at another position.

        Raises:
            UserError: A state of other data or another seed.
        """
        return Stream(
            self.dataset,
            global_batch=self.global_batch,
            rank=self.rank,
            world=self.world,
            seed=self.seed,
            state=state,
        )

    def state_after(self, batches: int) -> StreamState:
        """The state once ``batches`` batches since ``self.state`` have been consumed."""
        epoch, consumed = divmod(self._start + batches * self.global_batch, len(self.dataset))
        return StreamState(epoch, consumed, self.seed, self.dataset.fingerprint)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from ``self.state`` on. Close the iterator to stop what reads ahead."""
        if self.dataset.config.workers:
            return self._from_processes()
        return self._from_thread()

    def visits(self) -> Iterator[list[SampleRef]]:
        """What the batches consist of: this rank's (epoch, sample number) pairs."""
        share = self.global_batch // self.world
        start = self._start
        block = None
        while True:
            block = self._prefetch(start, block)
            yield self._visits(start + self.rank * share, share)
            start += self.global_batch

    @property
    def _start(self) -> int:
        return self.state.epoch * len(self.dataset) + self.state.consumed

    def _check_state(self) -> None:
        if self.state.fingerprint != self.dataset.fingerprint:
            raise UserError(
                f"{self.dataset.config.url}: this run was started on other data (or another "
                "selection or shuffle_block), so it cannot go on; restore them or start a new run"
            )
        if self.state.seed != self.seed:
            raise UserError(
                f"seed {self.seed}: this run was started with seed {self.state.seed}, so it "
                "cannot go on with another; restore it or start a new run"
            )
        if self.state.epoch < 0 or not 0 <= self.state.consumed < len(self.dataset):
            raise UserError(
                f"stream state: {self.state.consumed} samples consumed of {len(self.dataset)}"
            )

    def _epoch(self, epoch: int) -> "_Epoch":
        if epoch not in self._orders:
            for old in [known for known in self._orders if known < epoch - 1]:
                del self._orders[old]
            self._orders[epoch] = _Epoch.of(self.dataset, self.seed, epoch)
        return self._orders[epoch]

    def _visits(self, start: int, count: int) -> list[SampleRef]:
        visits: list[SampleRef] = []
        while len(visits) < count:
            epoch, offset = divmod(start + len(visits), len(self.dataset))
            part = self._epoch(epoch).order[offset : offset + count - len(visits)]
            visits.extend((epoch, index) for index in part.tolist())
        return visits

    def _prefetch(self, start: int, before: SampleRef | None) -> SampleRef:
        """Fetch the next block of shards whenever a new one is entered."""
        epoch, offset = divmod(start, len(self.dataset))
        blocks = self._epoch(epoch)
        here = epoch, int(np.searchsorted(blocks.ends, offset, side="right"))
        if here != before:
            wanted = blocks.shards[here[1] : here[1] + 2]
            self.dataset.prefetch([int(shard) for block in wanted for shard in block])
        return here

    def _from_thread(self) -> Iterator[Batch]:
        made: queue.Queue[Batch | Exception] = queue.Queue(_AHEAD)
        stop = threading.Event()

        def put(item: Batch | Exception) -> None:
            while not stop.is_set():
                try:
                    return made.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def run() -> None:
            loader = _Loader(self.dataset, self.seed)
            try:
                for visits in self.visits():
                    put(loader[visits])
                    if stop.is_set():
                        return
            except Exception as error:  # noqa: BLE001 (raised again where batches are taken)
                put(error)

        thread = threading.Thread(target=run, daemon=True, name="batches")
        thread.start()
        try:
            while True:
                yield _or_raise(made.get())
        finally:
            stop.set()
            thread.join()

    def _from_processes(self) -> Iterator[Batch]:
        # Forked workers share this process's memory, but not a remote file system's event loop.
        local = storage.is_local(self.dataset.config.url)
        loader: DataLoader[Batch | UserError] = DataLoader(
            _Loader(self.dataset, self.seed),
            batch_size=None,
            sampler=self.visits(),
            num_workers=self.dataset.config.workers,
            multiprocessing_context="fork" if local else "spawn",
            generator=torch.Generator(),  # or the loader would draw from the global one
        )
        for item in loader:
            yield _or_raise(item)


@dataclass(frozen=True)
class _Epoch:
    order: NDArray[np.int64]
    shards: list[NDArray[np.int64]]
    """Shards of each block."""
    ends: NDArray[np.int64]
    """Where in ``order`` each block ends."""

    @classmethod
    def of(cls, dataset: Dataset, seed: int, epoch: int) -> "_Epoch":
        sizes = np.asarray(dataset.shard_sizes)
        block = dataset.config.shuffle_block
        shards = shard_blocks(len(sizes), seed, epoch, block)
        ends = np.cumsum([int(sizes[members].sum()) for members in shards])
        return cls(epoch_order(dataset.shard_sizes, seed, epoch, block), shards, ends)


class _Loader(TorchDataset[Batch | UserError]):
    """Makes the batch of a list of visits. Returns errors: torch would bury their sentence."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self._dataset = dataset
        self._seed = seed

    def __getitem__(self, visits: list[SampleRef]) -> Batch | UserError:
        try:
            return collate(
                [
                    self._dataset.sample(index, seed=self._seed, epoch=epoch)
                    for epoch, index in visits
                ]
            )
        except UserError as error:
            return error


def _or_raise(item: Batch | Exception) -> Batch:
    if isinstance(item, Exception):
        raise item
    return item
