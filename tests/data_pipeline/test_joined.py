"""Sets whose members complete the samples of another."""

import numpy as np
import pytest

from data_pipeline.config import DataConfig, ImageConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.derive import derive
from data_pipeline.stream import Stream
from mezzotint.common.errors import UserError

ENCODER = "c" * 64
TEST = Selection(split="halves", part="test")


def derived(url, out, name="codes", encoder=ENCODER, **options):
    """A set of one array per sample, of numbers that are its key."""
    source = open_dataset(DataConfig(url=url, image=ImageConfig(size=4), **options))
    numbers = map(int, source.keys())
    blocks = ({name: np.full((1, 2), number, dtype=np.int32)} for number in numbers)
    derive(source, str(out), blocks, fields=(name,), encoder=encoder)
    return str(out)


def test_arrays_and_images_of_a_sample_come_from_several_sets(squares, tmp_path):
    codes = derived(squares, tmp_path / "codes")
    more = derived(squares, tmp_path / "more", "more")
    config = DataConfig(
        url=codes,
        join=(squares, more),
        arrays=("codes", "more"),
        select=(TEST,),
        image=ImageConfig(size=4),
    )
    joined = open_dataset(config, expected_encoder=ENCODER)
    plain = open_dataset(DataConfig(url=squares, select=(TEST,), image=ImageConfig(size=4)))
    assert joined.keys() == plain.keys()
    both, one = joined.batch(range(11)), plain.batch(range(11))
    assert (both.images == one.images).all()
    assert both.array("codes")[:, 0].tolist() == list(map(int, joined.keys()))
    assert (both.array("more") == both.array("codes")).all()
    assert {"png", "codes.npy", "more.npy", "txt"} <= set(joined.members(0))
    assert joined.holder("more.npy").name.endswith("more")
    assert joined.holder("codes.npy") is joined.manifest
    stream = Stream(joined, global_batch=4, rank=0, world=1, seed=0)
    first = next(iter(stream))
    assert first.array("more")[:, 0].tolist() == [int(key) for key in first.keys]


def test_the_fingerprint_covers_joined_sets(squares, tmp_path):
    codes = derived(squares, tmp_path / "codes")
    alone = open_dataset(DataConfig(url=squares))
    assert open_dataset(DataConfig(url=squares, join=(codes,))).fingerprint != alone.fingerprint


def test_a_joined_set_that_lacks_a_sample_or_array_is_refused(squares, tmp_path):
    part = derived(squares, tmp_path / "part", select=(TEST,))
    with pytest.raises(UserError, match=r"data.join: .*part has no sample '.*' \(12 of 23"):
        open_dataset(DataConfig(url=squares, join=(part,), arrays=("codes",)))
    config = DataConfig(url=squares, join=(part,), arrays=("other",), select=(TEST,))
    with pytest.raises(UserError, match=r"names 'other'; derive it .*data.url or data.join"):
        open_dataset(config)


def test_a_joined_set_of_another_encoder_is_refused(squares, tmp_path):
    codes = derived(squares, tmp_path / "codes", encoder="d" * 64)
    config = DataConfig(url=squares, join=(codes,), arrays=("codes",))
    with pytest.raises(UserError, match="codes: its encoder is dddddddddddd, but this run needs"):
        open_dataset(config, expected_encoder=ENCODER)
    with pytest.raises(UserError, match="its encoder is none"):
        open_dataset(DataConfig(url=squares), expected_encoder=ENCODER)
