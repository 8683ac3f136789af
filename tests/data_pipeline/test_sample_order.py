import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.sample_order import EpochOrder, sample_rng

SIZES = st.lists(st.integers(0, 20), min_size=1, max_size=12)
SEEDS = st.integers(0, 2**63)


@given(SIZES, SEEDS, st.integers(0, 1000), st.integers(1, 15))
def test_an_epoch_has_every_sample_once(sizes, seed, epoch, block):
    order = EpochOrder(sizes, seed, epoch, block).samples
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@given(SIZES, SEEDS, st.integers(0, 1000), st.integers(1, 15))
def test_samples_are_shuffled_inside_blocks_of_shards_only(sizes, seed, epoch, block):
    order = EpochOrder(sizes, seed, epoch, block)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    start = 0
    (lane,) = order.lanes
    for shards, end in zip(lane.blocks, lane.ends, strict=True):
        assert len(shards) <= block
        assert end == start + sum(sizes[shard] for shard in shards)
        assert set(shard_of[order.samples[start:end]]) <= set(shards.tolist())
        start = end


def test_the_order_is_that_of_earlier_versions():
    # raw Philox output: if it changes, existing runs cannot resume
    order = EpochOrder([3, 4, 0, 5], 1, 0, 2).samples
    assert order.tolist() == [6, 8, 9, 3, 11, 7, 10, 5, 4, 1, 0, 2]


def test_seeds_and_epochs_have_different_orders():
    orders = {
        tuple(EpochOrder([50, 50], seed, epoch, 8).samples.tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_a_sample_has_the_same_random_numbers_in_every_process():
    numbers = [sample_rng(3, 1, 41).random(4).tolist() for _ in range(2)]
    assert numbers[0] == numbers[1]
    assert numbers[0] != sample_rng(3, 1, 42).random(4).tolist()
    assert numbers[0] != sample_rng(3, 2, 41).random(4).tolist()
