"""An endless sequence of batches for one rank that resumes exactly."""

import copy
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from torch.utils.data import DataLoader

from data_pipeline.batch import Batch
from data_pipeline.buckets.batches import BucketedBatches, SampleRef
from data_pipeline.damage.loader import BatchLoader
from data_pipeline.dataset import Dataset
from data_pipeline.geometry.frame import Shape
from data_pipeline.sample_order import EpochOrder
from mezzotint.common import storage
from mezzotint.common.errors import UserError

_PREFETCHED_BATCHES = 4

BlockRef = tuple[int, int, int]
"""(epoch, lane, block)."""


class _Run(NamedTuple):
    """Consecutive samples of a lane."""

    epoch: int
    lane: int
    first: int
    """Its place in the lane."""
    end: int


class StreamState(BaseModel, frozen=True, strict=True, extra="forbid"):
    """The position of a stream, independent of the number of ranks and workers."""

    epoch: int
    consumed: int
    """Samples of the epoch that all ranks together have consumed."""
    seed: int
    fingerprint: str
    """`Stream.fingerprint`."""
    tokenizer: str | None = None
    """Its SHA-256; None without one, and in states of earlier versions."""

    @classmethod
    def from_json(cls, fields: Mapping[str, object]) -> "StreamState":
        """Validate the fields of a saved state.

        Raises:
            UserError: They are no state.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise UserError(f"not the state of a stream: {dict(fields)}") from error


class Stream:
    """The batches of one rank, without an end.

    The orders of epochs 0, 1, ... are concatenated. Global batch g is the samples [gB, (g+1)B) of
    that sequence (a batch may span two epochs), sorted by their position modulo the number of
    lanes, and rank r of W takes the r-th of its W equal parts, which is whole lanes where there are
    several. Every epoch has every sample once, for any W. `seed` is that of order and augmentation;
    without a `state` the stream starts at the first sample. With `data.image.buckets` a batch is
    that of `BucketOrder`, and rank r takes the r-th part of it.

    Raises:
        UserError: Invalid numbers, or a state of other data or another seed.
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
        lanes = dataset.config.lanes
        _check_lanes(lanes, len(dataset), global_batch, world)
        self.dataset = dataset
        self.lanes = lanes
        self.global_batch = global_batch
        self.rank = rank
        self.world = world
        self.seed = seed
        block, buckets = dataset.config.shuffle_block, dataset.buckets
        self._epoch = lru_cache(maxsize=3)(
            lambda epoch: EpochOrder(dataset.shard_sizes, seed, epoch, block, lanes)
        )
        self._buckets: BucketedBatches | None = None
        if buckets is not None:
            self._buckets = BucketedBatches(dataset, buckets, global_batch, self._epoch)
        self.fingerprint = (self._buckets or dataset).fingerprint
        """Digest of what the order depends on besides the seed."""
        self.state = state or self._state_at(0)
        self._check_state()

    def at(self, state: StreamState) -> "Stream":
        """The same stream at another position.

        Raises:
            UserError: A state of other data or another seed.
        """
        moved = copy.copy(self)
        moved.state = state
        moved._check_state()
        return moved

    def state_after(self, batches: int) -> StreamState:
        """The state after consuming this many batches from `self.state` on."""
        return self._state_at(self._start + batches * self.global_batch)

    def _state_at(self, position: int) -> StreamState:
        epoch, consumed = divmod(position, len(self.dataset))
        return StreamState(
            epoch=epoch,
            consumed=consumed,
            seed=self.seed,
            fingerprint=self.fingerprint,
            tokenizer=_tokenizer_digest(self.dataset),
        )

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `self.state` on; closing the iterator stops the prefetching."""
        if self.dataset.config.workers:
            return self._from_processes()
        return self._from_thread()

    def sample_refs(self) -> Iterator[list[SampleRef]]:
        """The samples of each batch of this rank."""
        if self._buckets is not None:
            yield from (refs for _, refs in self.shaped_refs())
            return
        start = self._start
        runs, prefetched = list(self._runs(start)), set[BlockRef]()
        while True:
            start += self.global_batch
            following = list(self._runs(start))
            prefetched = self._prefetch([*runs, *following], prefetched)
            yield [ref for run in runs for ref in self._refs(run)]
            runs = following

    def shaped_refs(self) -> Iterator[tuple[Shape | None, list[SampleRef]]]:
        """The same with the shape of each batch's images; None without buckets."""
        if self._buckets is None:
            return ((None, refs) for refs in self.sample_refs())
        share = self.global_batch // self.world
        first = self.rank * share
        return self._buckets.refs(self._start // self.global_batch, first, first + share)

    @property
    def _start(self) -> int:
        return self.state.epoch * len(self.dataset) + self.state.consumed

    def _check_state(self) -> None:
        if self.state.fingerprint != self.fingerprint:
            raise UserError(
                f"{self.dataset.config.url}: this run was started on other data (or another "
                "selection, shuffle_block, number of lanes or text.captions; with buckets batch or "
                "shapes) and cannot resume; restore them or start a new run"
            )
        tokenizer = _tokenizer_digest(self.dataset)
        if self.state.tokenizer is not None and self.state.tokenizer != tokenizer:
            raise UserError(
                "data.text.tokenizer: this run was started with the tokenizer of sha256 "
                f"{self.state.tokenizer[:12]}..., and this is {(tokenizer or 'none')[:12]}...; put "
                "the former back or start a new run"
            )
        if self.state.seed != self.seed:
            raise UserError(
                f"seed {self.seed}: this run was started with seed {self.state.seed} and cannot "
                "resume with another; restore it or start a new run"
            )
        if self._buckets is not None and self._start % self.global_batch:
            raise UserError(f"stream state: {self._start} samples are no whole batches of buckets")
        if self.state.epoch < 0 or not 0 <= self.state.consumed < len(self.dataset):
            raise UserError(
                f"stream state: {self.state.consumed} samples consumed of {len(self.dataset)}"
            )

    def _runs(self, start: int) -> Iterator["_Run"]:
        """This rank's part of the batch at a position of the sequence, lane by lane."""
        share, each = self.global_batch // self.world, self.global_batch // self.lanes
        first, last = self.rank * share, (self.rank + 1) * share
        for row in range(first // each, -(-last // each)):
            done, stop = max(first - row * each, 0), min(last - row * each, each)
            while done < stop:
                # a row is every lanes-th position from start + row on, all of one lane in an epoch
                epoch, position = divmod(start + row + done * self.lanes, len(self.dataset))
                place, lane = divmod(position, self.lanes)
                length = self._epoch(epoch).lanes[lane].length
                end = min(place + stop - done, length)
                yield _Run(epoch, lane, place, end)
                done += end - place

    def _refs(self, run: "_Run") -> list[SampleRef]:
        lane = self._epoch(run.epoch).lanes[run.lane]
        found = lane.samples(run.first, run.end)
        return [(run.epoch, index) for index in found.tolist()]

    def _prefetch(self, runs: Sequence["_Run"], known: set[BlockRef]) -> set[BlockRef]:
        """Fetch the blocks of these runs, and the next of each lane, but those `known`."""
        needed: dict[BlockRef, NDArray[np.int64]] = {}
        for run in runs:
            lane = self._epoch(run.epoch).lanes[run.lane]
            after = lane.block_at(run.end - 1) + 1
            for number in range(lane.block_at(run.first), min(after + 1, len(lane.blocks))):
                needed[run.epoch, run.lane, number] = lane.blocks[number]
            if after == len(lane.blocks):
                following = self._after(run)
                blocks = self._epoch(run.epoch + 1).lanes[following].blocks
                needed[run.epoch + 1, following, 0] = blocks[0]
        new = [shards for block, shards in needed.items() if block not in known]
        if new:
            self.dataset.prefetch(list(dict.fromkeys(np.concatenate(new).tolist())))
        return set(needed)

    def _after(self, run: "_Run") -> int:
        """The lane that is read in the next epoch where this one was."""
        return (run.lane - len(self.dataset)) % self.lanes

    def _from_thread(self) -> Iterator[Batch]:
        batches: queue.Queue[Batch | Exception] = queue.Queue(_PREFETCHED_BATCHES)
        stop, pinned = threading.Event(), torch.cuda.is_available()

        def put(item: Batch | Exception) -> None:
            while not stop.is_set():
                try:
                    return batches.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def run() -> None:
            loader = BatchLoader(self.dataset, self.seed)
            try:
                for item in self.shaped_refs():
                    loaded = loader[item]
                    put(loaded.pin_memory() if pinned and isinstance(loaded, Batch) else loaded)
                    if stop.is_set():
                        return
            except Exception as error:  # noqa: BLE001 (raised again in the consumer)
                put(error)

        thread = threading.Thread(target=run, daemon=True, name="batches")
        thread.start()
        try:
            while True:
                yield _or_raise(batches.get())
        finally:
            stop.set()
            thread.join()

    def _from_processes(self) -> Iterator[Batch]:
        # forked workers share memory, but cannot use a remote file system's event loop
        local = storage.is_local(self.dataset.config.url)
        loader: DataLoader[Batch | UserError] = DataLoader(
            BatchLoader(self.dataset, self.seed),
            batch_size=None,
            sampler=self.shaped_refs(),
            num_workers=self.dataset.config.workers,
            multiprocessing_context="fork" if local else "spawn",
            generator=torch.Generator(),  # by default the loader uses the global one
            pin_memory=torch.cuda.is_available(),
        )
        for item in loader:
            yield _or_raise(item)


def _check_lanes(lanes: int, samples: int, global_batch: int, world: int) -> None:
    if lanes > max(samples, 1):
        raise UserError(
            f"data.lanes: {lanes} lanes are more than the {samples} samples that are selected; "
            "choose fewer"
        )
    if global_batch % lanes:
        raise UserError(
            f"data.lanes: {lanes} lanes cannot share a global batch of {global_batch}; choose a "
            f"multiple of {lanes}"
        )
    if lanes > 1 and lanes % world:
        possible = ", ".join(str(each) for each in range(1, lanes + 1) if lanes % each == 0)
        raise UserError(
            f"data.lanes: {world} processes cannot share {lanes} lanes; start {possible} of them, "
            "or a new run with other lanes"
        )


def _tokenizer_digest(dataset: Dataset) -> str | None:
    return None if dataset.tokenizer is None else dataset.tokenizer.sha256


def _or_raise(item: Batch | Exception) -> Batch:
    if isinstance(item, Exception):
        raise item
    return item
