"""Lanes: the order of an epoch, and what each process reads of it."""

import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig
from data_pipeline.sample_order import EpochOrder
from data_pipeline.stream import Stream, StreamState
from mezzotint.common.errors import UserError

SIZES = st.lists(st.integers(0, 20), min_size=1, max_size=12)
LANES = 12


@dataclass
class Shards:
    """A dataset of which only the order is read; notes what was fetched ahead."""

    shard_sizes: tuple[int, ...]
    config: DataConfig
    fingerprint: str = "x"
    buckets: None = None
    tokenizer: None = None
    fetched: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def prefetch(self, shards: list[int]) -> None:
        self.fetched.extend(shards)

    def shard_of(self, sample: int) -> int:
        return int(np.searchsorted(np.cumsum(self.shard_sizes), sample, side="right"))


def shards(sizes, lanes, block=2) -> Shards:
    return Shards(tuple(sizes), DataConfig(url="x", lanes=lanes, shuffle_block=block))


def batches(data, count, world, global_batch=24, state=None):
    """The global batches, each of the parts of all ranks in turn."""
    ranks = [
        islice(
            Stream(
                data, global_batch=global_batch, rank=rank, world=world, seed=5, state=state
            ).sample_refs(),
            count,
        )
        for rank in range(world)
    ]
    return [[ref for part in parts for ref in part] for parts in zip(*ranks, strict=True)]


@given(SIZES, st.integers(0, 2**63), st.integers(1, 5), st.integers(1, 9))
def test_lanes_are_equal_parts_that_have_every_sample_once(sizes, seed, block, lanes):
    order = EpochOrder(sizes, seed, 1, block, lanes)
    assert sorted(order.samples.tolist()) == list(range(sum(sizes)))
    lengths = [lane.length for lane in order.lanes]
    assert max(lengths) - min(lengths) <= 1
    ends = np.cumsum(sizes)
    for lane in order.lanes:
        found = lane.samples(0, lane.length)
        assert [found[at : at + 3].tolist() for at in range(0, lane.length, 3)] == [
            lane.samples(at, min(at + 3, lane.length)).tolist() for at in range(0, lane.length, 3)
        ]
        begin = 0
        for block_shards, end in zip(lane.blocks, lane.ends, strict=True):
            assert len(block_shards) <= block
            inside = np.searchsorted(ends, found[begin:end], side="right")
            assert set(inside.tolist()) <= set(block_shards.tolist())
            begin = end
        assert begin == lane.length


def test_one_lane_is_the_order_without_lanes():
    sizes = [7, 0, 13, 4, 9]
    order = EpochOrder(sizes, 3, 2, 2)
    assert order.samples.tolist() == order.lanes[0].samples(0, 33).tolist()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 30), min_size=12, max_size=40), st.sampled_from([12, 24, 60]))
def test_global_batches_do_not_depend_on_the_number_of_processes(sizes, global_batch):
    data = shards(sizes, LANES)
    count = 2 * len(data) // global_batch + 2
    whole = batches(data, count, 1, global_batch)
    for world in (2, 3, 4, 6, 12):
        assert batches(data, count, world, global_batch) == whole
    seen = Counter(ref for one in whole for ref in one)
    assert set(seen.values()) == {1}
    assert sum(epoch == 0 for epoch, _ in seen) == len(data)


def test_every_batch_has_as_many_samples_of_each_lane():
    data = shards([10] * 24, LANES)
    order = EpochOrder(data.shard_sizes, 5, 0, 2, LANES)
    lane_of = {
        int(sample): number
        for number, lane in enumerate(order.lanes)
        for sample in lane.samples(0, lane.length)
    }
    for one in batches(data, 10, 4):
        assert set(Counter(lane_of[index] for _, index in one).values()) == {2}


def test_a_run_goes_on_with_other_numbers_of_processes():
    data = shards([7, 11, 3, 19, 8, 5, 13, 2, 17, 6, 9, 4, 10], LANES)
    whole = batches(data, 30, 1)
    first = Stream(data, global_batch=24, rank=0, world=4, seed=5)
    for done in range(0, 24, 3):
        state = StreamState.from_json(first.state_after(done).model_dump())
        for world in (2, 6):
            assert batches(data, 5, world, state=state) == whole[done : done + 5]


def test_a_run_that_is_killed_at_50_random_places_reads_what_an_unbroken_one_does():
    data = shards([7, 11, 3, 19, 8, 5, 13, 2, 17, 6, 9, 4, 10], LANES)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 4, 51).tolist()
    whole, state, read = batches(data, sum(lengths), 1), None, []
    for length in lengths:
        world = int(rng.choice([1, 2, 3, 4, 6, 12]))
        read += batches(data, length, world, state=state)
        position = Stream(data, global_batch=24, rank=0, world=world, seed=5, state=state)
        state = StreamState.from_json(json.loads(position.state_after(length).model_dump_json()))
    assert read == whole


@pytest.mark.parametrize(
    ("world", "global_batch", "message"),
    [
        (5, 60, r"5 processes cannot share 12 lanes; start 1, 2, 3, 4, 6, 12 of them"),
        (24, 24, r"24 processes cannot share 12 lanes; start 1, 2, 3, 4, 6, 12"),
        (2, 32, r"data\.lanes: 12 lanes cannot share a global batch of 32; choose a multiple"),
    ],
)
def test_impossible_shares_are_refused_with_what_is_possible(world, global_batch, message):
    with pytest.raises(UserError, match=message):
        Stream(shards([40] * 12, LANES), global_batch=global_batch, rank=0, world=world, seed=0)


def test_more_lanes_than_samples_are_refused():
    with pytest.raises(UserError, match=r"data\.lanes: 12 lanes are more than the 5 samples"):
        Stream(shards([5], LANES), global_batch=12, rank=0, world=1, seed=0)


@pytest.mark.parametrize(("nodes", "ranks"), [(2, 8), (8, 8), (128, 8)])
@pytest.mark.parametrize("samples", [100, 5000])
def test_a_node_reads_its_own_part_of_the_shards(nodes, ranks, samples):
    count = 40 * nodes * ranks // 8
    lanes = nodes * ranks
    order = EpochOrder([samples] * count, 0, 0, 2, lanes)
    for node in {0, nodes // 2, nodes - 1}:
        own = order.lanes[node * ranks : (node + 1) * ranks]
        read = {int(shard) for lane in own for block in lane.blocks for shard in block}
        assert len(read) <= 1.05 * count / nodes


@pytest.mark.parametrize("global_batch", [64, 1024, 4096])
@pytest.mark.parametrize(("world", "lanes"), [(1, 1), (2, 1), (4, 8)])
def test_everything_that_is_read_was_asked_for_a_batch_before(world, lanes, global_batch):
    data = shards([100] * 64, lanes, block=2)
    for rank in {0, world - 1}:
        data.fetched.clear()
        stream = Stream(data, global_batch=global_batch, rank=rank, world=world, seed=1)
        refs = stream.sample_refs()
        next(refs)
        for _ in range(2 * len(data) // global_batch):
            before = set(data.fetched)
            read = next(refs)
            assert {data.shard_of(index) for _, index in read} <= before
