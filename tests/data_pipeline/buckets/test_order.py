"""Batches of one shape: every sample once, whole batches, exact positions."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.buckets.order import BucketOrder
from data_pipeline.sample_order import EpochOrder

BUCKETS = 4
SETS = st.lists(st.lists(st.integers(0, BUCKETS - 1), max_size=12), min_size=1, max_size=9).filter(
    lambda shards: sum(map(len, shards)) >= 2
)


def order_of(shards, batch, seed=3, block=2, window=99):
    sizes = [len(shard) for shard in shards]
    buckets = np.array([one for shard in shards for one in shard], dtype=np.int64)
    counts = np.array([np.bincount(shard, minlength=BUCKETS) for shard in shards], dtype=np.int64)
    orders = lambda epoch: EpochOrder(sizes, seed, epoch, block)  # noqa: E731
    return BucketOrder(counts, lambda samples: buckets[samples], batch, window, orders), buckets


@settings(deadline=None)
@given(SETS, st.data())
def test_every_sample_is_read_once_an_epoch_in_whole_batches(shards, data):
    count = sum(map(len, shards))
    batch = data.draw(st.integers(1, count // 2))
    order, buckets = order_of(shards, batch, window=data.draw(st.sampled_from([1, 2, 99])))
    epochs = 3
    elsewhere = np.zeros(epochs + 1, dtype=int)
    seen: Counter[tuple[int, int]] = Counter()
    for number in range(epochs * count // batch):
        found = order.batch(number)
        refs = order.samples(found, 0, batch)
        assert len(refs) == batch
        # a position of the stream is one of the epoch that the sample is of
        assert [epoch for epoch, _ in refs] == [
            (number * batch + row) // count for row in range(batch)
        ]
        seen.update(refs)
        for epoch, index in refs:
            elsewhere[epoch] += buckets[index] != found.bucket
        shared = len({epoch for epoch, _ in refs}) > 1
        if len(found.runs) == 1 and not shared:
            assert {buckets[index] for _, index in refs} == {found.bucket}
    assert elsewhere[:2].tolist() == [order.epoch(each).elsewhere.sum() for each in range(2)]
    whole = {(epoch, index) for epoch in range(epochs) for index in range(count)}
    assert set(seen.values()) <= {1}
    missing = whole - seen.keys()
    assert len(missing) == epochs * count % batch
    assert {epoch for epoch, _ in missing} <= {epochs - 1}


@settings(deadline=None)
@given(SETS, st.data())
def test_what_is_left_of_buckets_is_less_than_a_batch_of_each(shards, data):
    count = sum(map(len, shards))
    batch = data.draw(st.integers(1, count // 2))
    order, _ = order_of(shards, batch)
    for window in (order.epoch(each).window(0) for each in range(3)):
        assert (window.rest < batch).all()
        assert window.rest.sum() % batch == 0
        assert len(list(window.merged())) == window.rest.sum() // batch
        for bucket, runs in window.merged():
            known = [run.bucket for run in runs]
            assert known == sorted(known)
            assert bucket in known


def test_batches_of_one_shape_follow_in_another_order_in_every_epoch():
    shards = [[0, 1, 1, 2] * 6 for _ in range(8)]
    order, _ = order_of(shards, 6)
    epochs = [[order.batch(32 * epoch + at).bucket for at in range(32)] for epoch in range(3)]
    assert len(set(map(tuple, epochs))) == 3
    assert all(Counter(each) == {0: 8, 1: 16, 2: 8} for each in epochs)
    # bucket 1 is twice as full, and its batches are not all at the end or the beginning
    assert all(1 in each[:8] and 1 in each[-8:] for each in epochs)


def test_shards_are_read_within_their_window_alone():
    """Six windows of two blocks of two shards; a rare bucket waits for no other window."""
    shards = [[0, 1, 1, 1, 1, 2, 1, 1, 3, 1]] * 24
    order, _ = order_of(shards, 8, window=2)
    assert order.epoch(0).window_ends.tolist() == [40, 80, 120, 160, 200, 240]
    windows = np.repeat(np.arange(6), 4)[np.argsort(order.epoch(0).order.shards.shards)]
    for number in range(30):
        refs = order.samples(order.batch(number), 0, 8)
        inside = {int(windows[index // 10]) for _, index in refs}
        assert inside == {number * 8 // 40}


def test_parts_of_ranks_are_the_batch_and_positions_are_reached_directly():
    """Three ranks, and buckets of 7, 11, 5 and 17 samples, which 12 does not divide."""
    shards = [[3] * 9, [0] * 7, [1] * 6 + [2] * 3, [1] * 5 + [3] * 8 + [2] * 2]
    order, _ = order_of(shards, 12, block=1)
    again, _ = order_of(shards, 12, block=1)
    for number in (40, 7, 3, 0, 23, 6):
        found = order.batch(number)
        assert found == again.batch(number)
        whole = order.samples(found, 0, 12)
        parts = [again.samples(found, 4 * rank, 4 * rank + 4) for rank in range(3)]
        assert [ref for part in parts for ref in part] == whole


def test_the_order_is_that_of_before():
    """A resumed run must find its order again."""
    order, _ = order_of([[0, 1, 2, 3, 1], [1, 1, 2], [3, 0, 1, 1]], 4)
    found = [
        (order.batch(number).bucket, order.samples(order.batch(number), 0, 4)) for number in (0, 2)
    ]
    assert found == [(1, [(0, 10), (0, 5), (0, 6), (0, 11)]), (1, [(0, 9), (0, 0), (0, 4), (0, 1)])]
