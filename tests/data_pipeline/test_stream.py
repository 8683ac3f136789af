import itertools
import json
import threading
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.config import DataConfig, ImageConfig, TextConfig
from data_pipeline.dataset import Dataset, open_dataset
from data_pipeline.packing.shard_writer import RawSample, write_shard
from data_pipeline.sets.stored_set import read_contents
from data_pipeline.sets.write import write_contents
from data_pipeline.stream import Stream, StreamState
from mezzotint.common.errors import UserError

FIXTURES_ARE_READ_ONLY = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)


@pytest.fixture
def dataset(squares) -> Dataset:
    return open_dataset(DataConfig(url=squares, shuffle_block=2))


def sample_refs(dataset, batches, *, world, global_batch, seed=3, state=None):
    """What all ranks together see, batch after batch, in the order of the ranks."""
    ranks = [
        Stream(dataset, global_batch=global_batch, rank=rank, world=world, seed=seed, state=state)
        for rank in range(world)
    ]
    streams = [itertools.islice(rank.sample_refs(), batches) for rank in ranks]
    return [[ref for share in shares for ref in share] for shares in zip(*streams, strict=True)]


@FIXTURES_ARE_READ_ONLY
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**40))
def test_every_epoch_has_every_sample_once_on_any_world_size(dataset, world, share, seed):
    batch = world * share
    batches = -(-3 * len(dataset) // batch)
    seen = [
        ref
        for one in sample_refs(dataset, batches, world=world, global_batch=batch, seed=seed)
        for ref in one
    ]
    counts = Counter(seen[: 3 * len(dataset)])
    assert set(counts.values()) == {1}
    assert set(counts) == set(itertools.product(range(3), range(len(dataset))))


@FIXTURES_ARE_READ_ONLY
@given(st.integers(0, 30), st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 2, 3, 4, 6]))
def test_a_run_resumes_exactly_on_any_world_size(dataset, done, before, after):
    whole = sample_refs(dataset, done + 5, world=before, global_batch=12)
    first = Stream(dataset, global_batch=12, rank=0, world=before, seed=3)
    state = StreamState.from_json(json.loads(json.dumps(first.state_after(done).model_dump())))
    rest = sample_refs(dataset, 5, world=after, global_batch=12, state=state)
    assert rest == whole[done:]


@FIXTURES_ARE_READ_ONLY
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30))
def test_states_add_up(dataset, some, more, batch):
    stream = Stream(dataset, global_batch=batch, rank=0, world=1, seed=3)
    later = Stream(
        dataset, global_batch=batch, rank=0, world=1, seed=3, state=stream.state_after(some)
    )
    assert later.state_after(more) == stream.state_after(some + more)
    assert next(later.sample_refs()) == next(stream.at(later.state).sample_refs())


def test_another_batch_size_resumes_at_the_same_sample(dataset):
    state = Stream(dataset, global_batch=4, rank=0, world=1, seed=3).state_after(3)
    flat = [v for one in sample_refs(dataset, 30, world=1, global_batch=1) for v in one]
    assert sample_refs(dataset, 1, world=1, global_batch=7, state=state)[0] == flat[12:19]


def read(config, batches=6, **options):
    with_close = iter(
        Stream(open_dataset(config), global_batch=8, rank=0, world=1, seed=5, **options)
    )
    taken = list(itertools.islice(with_close, batches))
    with_close.close()
    return taken


def test_batches_do_not_depend_on_workers_or_caching(squares, tokenizer_directory):
    config = DataConfig(
        url=squares,
        image=ImageConfig(size=4, flip=True, flip_with_captions=True),
        text=TextConfig(tokenizer=tokenizer_directory, length=20, dropout=0.3),
        shuffle_block=2,
    )
    plain = read(config)
    for other in (
        config.model_copy(update={"workers": 1}),
        config.model_copy(update={"workers": 2}),
        config.model_copy(update={"cache_in_memory": True}),
    ):
        for one, two in zip(plain, read(other), strict=True):
            assert one.keys == two.keys
            assert one.captions == two.captions
            assert torch.equal(one.images, two.images)
            assert torch.equal(one.tokens, two.tokens)


def test_workers_leave_the_global_generator_alone(squares):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read(DataConfig(url=squares, workers=1), batches=1)
    assert torch.equal(before, torch.get_rng_state())


def test_images_come_as_floats_between_minus_one_and_one(squares):
    batch = read(DataConfig(url=squares, image=ImageConfig(size=4)))[0]
    assert batch.images.shape == (8, 3, 4, 4)
    assert batch.images.dtype == torch.float32
    number = torch.tensor([float(key) for key in batch.keys])
    torch.testing.assert_close(batch.images[:, 0, 0, 0], number / 127.5 - 1)
    assert batch.captions[0].endswith(f"square {int(batch.keys[0])}")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_ends_the_stream_with_one_sentence(squares, workers):
    damaged = [RawSample("a", {"txt": b"a", "png": b"not an image"})]
    shard = write_shard(damaged, squares, "squares-000005.tar")
    contents = read_contents(squares)
    shards = (*contents.shards, shard)
    write_contents(squares, contents.model_copy(update={"shards": shards}))
    config = DataConfig(url=squares, image=ImageConfig(size=4), workers=workers)
    with pytest.raises(UserError, match=r"squares-000005.tar: a.png: not a readable") as error:
        read(config)
    assert "\n" not in str(error.value)


def test_a_closed_iterator_stops_reading(dataset):
    iterator = iter(Stream(dataset, global_batch=4, rank=0, world=1, seed=0))
    next(iterator)
    assert any(thread.name == "batches" for thread in threading.enumerate())
    iterator.close()
    assert not any(thread.name == "batches" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"global_batch": 5, "rank": 0, "world": 2}, "a multiple of 2"),
        ({"global_batch": 0, "rank": 0, "world": 1}, "global batch of 0"),
        ({"global_batch": 4, "rank": 2, "world": 2}, "rank 2 of 2"),
        ({"global_batch": 4, "rank": 0, "world": 1, "seed": -1}, "seed -1"),
    ],
)
def test_impossible_numbers_are_refused(dataset, numbers, message):
    with pytest.raises(UserError, match=message):
        Stream(dataset, **{"seed": 0, **numbers})


def test_a_state_of_other_data_or_another_seed_is_refused(dataset, squares):
    state = Stream(dataset, global_batch=4, rank=0, world=1, seed=0).state_after(2)
    other = open_dataset(DataConfig(url=squares, shuffle_block=3))
    with pytest.raises(UserError, match="started on other data"):
        Stream(other, global_batch=4, rank=0, world=1, seed=0, state=state)
    with pytest.raises(UserError, match="started with seed 0"):
        Stream(dataset, global_batch=4, rank=0, world=1, seed=1, state=state)


def test_invalid_states_are_refused():
    with pytest.raises(UserError, match="not the state of a stream"):
        StreamState.from_json({"epoch": 0, "consumed": "three"})
