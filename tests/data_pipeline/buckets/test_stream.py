"""A stream of batches of one shape from a set of mixed images."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.geometry.config import BucketConfig
from data_pipeline.index import index
from data_pipeline.indexing.options import IndexOptions
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.packing.shard_writer import write_shards
from data_pipeline.stream import Stream
from mezzotint.common.errors import UserError

SIZES = [(8, 8)] * 17 + [(20, 10)] * 11 + [(9, 14)] * 7 + [(30, 6)] * 4 + [(5, 9)] * 2
BATCH, BUCKETS = 6, BucketConfig(multiple=2, max_aspect=2)


@pytest.fixture
def mixed(tmp_path, make_raw):
    """41 images of five sizes in shards of 5."""
    order = np.random.default_rng(1).permutation(len(SIZES)).tolist()
    raw = [make_raw(f"{row:03d}", "x", *SIZES[at]) for row, at in enumerate(order)]
    url = str(tmp_path / "mixed")
    write_shards(raw, url, name="m", licence="l", provenance={}, shard_size=5, fields={})
    return url


def opened(url, **image):
    fields = {"size": 8, "fit": "crop", "buckets": BUCKETS, **image}
    return open_dataset(DataConfig(url=url, shuffle_block=2, image=ImageConfig(**fields)))


def stream(dataset, rank=0, world=1, state=None, batch=BATCH):
    return Stream(dataset, global_batch=batch, rank=rank, world=world, seed=2, state=state)


def test_three_ranks_have_the_same_shape_in_every_step_and_every_sample_once(mixed):
    dataset, batches = opened(mixed), 41
    ranks = [islice(stream(dataset, rank, 3), batches) for rank in range(3)]
    seen, shapes = Counter(), Counter()
    for step in zip(*ranks, strict=True):
        (shape,) = {tuple(batch.images.shape[2:]) for batch in step}
        shapes[shape] += 1
        assert [len(batch) for batch in step] == [2, 2, 2]
        seen.update(key for batch in step for key in batch.keys)
    assert len(shapes) > 2
    assert set(shapes) <= {(one.height, one.width) for one in dataset.buckets.shapes}
    assert set(seen.values()) == {6}  # 41 batches of 6 are 6 epochs of 41
    assert len(seen) == 41


def test_a_stream_resumes_at_any_batch_with_any_number_of_ranks(mixed):
    dataset = opened(mixed)
    whole = list(islice(stream(dataset).shaped_refs(), 30))
    for done in (1, 6, 7, 13, 22):
        state = stream(dataset).state_after(done)
        assert (state.epoch, state.consumed) == divmod(done * BATCH, 41)
        for world in (1, 2, 3):
            parts = [
                list(islice(stream(dataset, rank, world, state).shaped_refs(), 5))
                for rank in range(world)
            ]
            for step, (shape, refs) in zip(zip(*parts, strict=True), whole[done:], strict=False):
                assert {one for one, _ in step} == {shape}
                assert [ref for _, part in step for ref in part] == refs


def test_another_batch_or_other_shapes_do_not_resume(mixed):
    state = stream(opened(mixed)).state_after(2)
    with pytest.raises(UserError, match="with buckets batch or shapes"):
        stream(opened(mixed), state=state, batch=4)
    with pytest.raises(UserError, match="with buckets batch or shapes"):
        stream(opened(mixed, buckets=BucketConfig(multiple=4)), state=state)
    with pytest.raises(UserError, match=r"batches of 21 are more than half of the 41 samples"):
        stream(opened(mixed), batch=21)


def test_images_are_cut_or_padded_to_the_shape_and_evaluation_reads_squares(mixed):
    for fit in ("crop", "pad"):
        dataset = opened(mixed, fit=fit)
        assert dataset.batch(range(4)).images.shape == (4, 3, 8, 8)
        for batch in islice(stream(dataset), 12):
            assert np.prod(batch.images.shape[2:]) <= 64


def test_workers_give_the_same_batches(mixed):
    dataset = opened(mixed)
    config = dataset.config.model_copy(update={"workers": 1})
    for one, other in islice(zip(stream(dataset), stream(open_dataset(config)), strict=True), 4):
        assert one.keys == other.keys
        assert (one.image == other.image).all()


def test_uses_count_all_samples_and_what_is_cut_off(mixed):
    uses = opened(mixed).buckets.uses()
    assert sum(one.samples for one in uses) == 41
    (square,) = [one for one in uses if one.shape == (8, 8)]
    assert (square.samples, square.cut_off) == (17, 0)
    widest = max(uses, key=lambda one: one.shape.width / one.shape.height)
    assert widest.samples == 15
    assert widest.cut_off == pytest.approx(
        4 * (1 - widest.shape.width / widest.shape.height / 5) / 15
        + 11 * max(0, 1 - widest.shape.width / widest.shape.height / 2) / 15,
        abs=1e-3,
    )


def test_a_set_without_sizes_is_refused_with_the_command(squares):
    with pytest.raises(UserError, match=r"none of '0000'; write them with `mezzotint data index"):
        opened(squares)


def test_pack_writes_the_size_of_the_upright_image(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    image = Image.new("RGB", (6, 4), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(source / "turned.jpg", exif=exif)
    image.save(source / "wide.png")
    for name in ("turned", "wide"):
        (source / f"{name}.txt").write_text("red")
    pack(str(source), str(tmp_path / "out"), PackOptions(image_sizes=True))
    dataset = open_dataset(DataConfig(url=str(tmp_path / "out")))
    found = {
        (entry.attributes["width"], entry.attributes["height"])
        for entry in map(dataset.entry, range(2))
    }
    assert found == {(4, 6), (6, 4)}


def test_index_adds_the_sizes_to_a_set_and_keeps_the_rest(squares):
    before = open_dataset(DataConfig(url=squares)).entry(3).attributes
    index(squares)
    assert open_dataset(DataConfig(url=squares)).entry(3).attributes == before
    index(squares, IndexOptions(image_sizes=True, images=False))
    dataset = opened(squares)
    assert dataset.entry(3).attributes == {**before, "width": 8, "height": 8}
    assert [one.samples for one in dataset.buckets.uses() if one.samples] == [23]
