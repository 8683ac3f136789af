"""Other samples take the place of damaged ones, and are counted."""

import itertools
import logging
from collections import Counter

import pytest

from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.damage.errors import DamagedSampleError
from data_pipeline.dataset import open_dataset
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.stream import Stream
from mezzotint.common.errors import UserError


def write(url, samples, shard_size=6):
    write_shards(
        samples,
        url,
        name="x",
        licence="none",
        provenance={},
        shard_size=shard_size,
        fields={"png": "image", "txt": "caption"},
    )
    return url


@pytest.fixture
def damaged(tmp_path, squares):
    """24 samples in 4 shards; three do not decode."""
    dataset = open_dataset(DataConfig(url=squares))
    image = dataset.member(0, "png")
    faults = {3: {"png": image[:40]}, 9: {"txt": b"\xff\xfe\xff"}, 21: {"png": b"no image"}}
    samples = [
        RawSample(f"{n:02d}", {"png": image, "txt": b"x"} | faults.get(n, {})) for n in range(24)
    ]
    return write(str(tmp_path / "damaged"), samples)


def batches(url, *, world=1, workers=0, **config):
    """The keys of the global batches of two epochs, and what was damaged."""
    dataset = open_dataset(
        DataConfig(url=url, image=ImageConfig(size=8), workers=workers, **config)
    )
    ranks = [
        Stream(dataset, global_batch=6, rank=rank, world=world, seed=1) for rank in range(world)
    ]
    keys, counts = [], Counter()
    for parts in itertools.islice(zip(*map(iter, ranks), strict=True), 8):
        keys.append(tuple(key for part in parts for key in part.keys))
        for part in parts:
            counts.update(part.damaged)
    return keys, counts


def test_the_first_damaged_sample_ends_a_stream(damaged):
    with pytest.raises(UserError, match=r"x-00000\d.tar: (03.png|09.txt|21.png): not"):
        batches(damaged)


@pytest.mark.parametrize("lanes", [1, 3])
def test_substitutes_do_not_depend_on_processes_and_workers(damaged, lanes, caplog):
    with caplog.at_level(logging.WARNING):
        keys, counts = batches(damaged, max_damaged=0.5, lanes=lanes)
    assert counts == {"image": 4, "caption": 2}  # two epochs
    seen = Counter(key for batch in keys for key in batch)
    assert sum(seen.values()) == 48
    assert not {"03", "09", "21"} & seen.keys()
    shards = Counter(int(key) // 6 for batch in keys for key in batch)
    assert shards == {0: 12, 1: 12, 2: 12, 3: 12}  # each has one of its own shard in its place
    assert sum("another sample of its shard is taken" in line for line in caplog.messages) == 3
    assert batches(damaged, max_damaged=0.5, lanes=lanes, world=3) == (keys, counts)
    if lanes == 1:
        assert batches(damaged, max_damaged=0.5, workers=2) == (keys, counts)


def test_a_shard_of_damaged_samples_ends_the_stream(tmp_path):
    samples = [RawSample(f"{n}", {"png": b"no", "txt": b"x"}) for n in range(6)]
    url = write(str(tmp_path / "bad"), samples)
    with pytest.raises(UserError, match="up to 16 other samples of its shard are damaged too"):
        batches(url, max_damaged=0.5)


def test_a_shard_that_changed_is_no_damaged_sample(damaged, tmp_path):
    path = tmp_path / "damaged" / "x-000001.tar"
    path.write_bytes(path.read_bytes()[:-512] + bytes(511) + b"x")
    with pytest.raises(UserError, match="does not match its manifest") as error:
        batches(damaged, max_damaged=0.5)
    assert not isinstance(error.value, DamagedSampleError)


def test_damaged_arrays_and_hints_have_causes(tmp_path):
    content = b"no array"
    samples = [
        RawSample(f"{n}", {"codes.npy": content, "edges.png": b"no", "txt": b"x"}) for n in range(3)
    ]
    url = write(str(tmp_path / "arrays"), samples)
    for more, cause in (
        ({"arrays": ("codes",)}, "array"),
        ({"hint": {"name": "edges", "size": 8}}, "hint"),
    ):
        dataset = open_dataset(DataConfig(url=url, **more))
        with pytest.raises(DamagedSampleError) as error:
            dataset.sample(0)
        assert error.value.cause == cause
