"""Captions that name a side."""

import pytest

from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.geometry.sides import SideCaptions, names_side
from data_pipeline.packing.shard_writer import write_shards


@pytest.mark.parametrize(
    "caption",
    ["Left arrow", "a right-handed man", "the rightmost tree", "turns counterclockwise", "RIGHT!"],
)
def test_a_side_is_named(caption):
    assert names_side(caption)


@pytest.mark.parametrize("caption", ["a bright day", "copyright", "civil rights", "cleft chin", ""])
def test_no_side_is_named(caption):
    assert not names_side(caption)


def test_counts_and_an_example():
    found = SideCaptions.count(["a dog", "a left hand", "a right hand", "a cat"])
    assert found == SideCaptions(4, 2, "a left hand")
    assert "2 of 4 captions read (50.0%) name a side" in found.to_text()
    assert SideCaptions.count([]).to_text().startswith("0 of 0")


def test_guarded_flips_mirror_the_samples_that_name_no_side_and_no_others(tmp_path, make_raw):
    url = str(tmp_path / "set")
    write_shards(
        [make_raw("a", "a dog"), make_raw("b", "a dog on the left")],
        url,
        name="a",
        licence="l",
        provenance={},
        shard_size=2,
        fields={},
    )
    every, guarded = (
        open_dataset(
            DataConfig(url=url, image=ImageConfig(size=8, flip=True, flip_with_captions=how))
        )
        for how in (True, "guarded")
    )
    plain = [every.sample(index).image for index in range(2)]
    flipped = [0, 0]
    for epoch in range(16):
        for index in range(2):
            image = every.sample(index, seed=1, epoch=epoch).image
            kept = guarded.sample(index, seed=1, epoch=epoch).image
            flipped[index] += not (image == plain[index]).all()
            assert (kept == (plain[1] if index else image)).all()
    assert min(flipped) > 0
