"""Equal and nearly equal images are found, and left out by a split."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from data_pipeline.config import DataConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.duplicates.dedup import DedupOptions, dedup
from data_pipeline.duplicates.groups import groups_of
from data_pipeline.duplicates.signature import apart, signature
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.verify import verify
from mezzotint.common.errors import UserError


def photograph(seed, size=(96, 72)):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image, form="PNG", **options):
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


@pytest.fixture
def repeated(tmp_path):
    """12 photographs, of which 1 occurs twice as it is, and 2 as a smaller JPEG file too."""
    images = {f"{n:02d}": encoded(photograph(n)) for n in range(12)}
    images["copy"] = images["01"]
    jpeg = encoded(photograph(2).resize((60, 45)), "JPEG", quality=80)
    members = {key: {"png": image, "txt": b"x"} for key, image in images.items()}
    members["nearly"] = {"jpg": jpeg, "txt": b"x"}
    parts = {"copy": "test", "nearly": "test"}
    write_shards(
        (
            RawSample(key, one, parts={"halves": parts.get(key, "train")})
            for key, one in members.items()
        ),
        str(tmp_path / "set"),
        name="x",
        licence="none",
        provenance={},
        shard_size=5,
        fields={"png": "image", "txt": "caption"},
        splits={"halves": "two held out"},
    )
    return str(tmp_path / "set")


@pytest.mark.parametrize("processes", [1, 2])
def test_equal_and_nearly_equal_images_are_left_out(repeated, processes):
    tars = {path.name: path.read_bytes() for path in Path(repeated).glob("*.tar")}
    report = dedup(repeated, DedupOptions(processes=processes))
    assert sorted(report.keys) == [("01", "copy"), ("02", "nearly")]
    assert (report.images, report.left_out, report.equal_files) == (14, 2, 1)
    assert report.across == {"halves": 2}
    within = Selection(split="halves", part="train", within={"deduplicated": "train"})
    assert len(open_dataset(DataConfig(url=repeated, select=(within,)))) == 12
    left_out = Selection(split="deduplicated", part="test")
    assert open_dataset(DataConfig(url=repeated, select=(left_out,))).keys() == ("copy", "nearly")
    assert {path.name: path.read_bytes() for path in Path(repeated).glob("*.tar")} == tars
    assert verify(repeated).problems == ()
    again = dedup(repeated)
    assert again.manifest == report.manifest


def test_equal_files_alone(repeated):
    report = dedup(repeated, DedupOptions(exact=True))
    assert report.keys == (("01", "copy"),)


def test_sets_without_images_and_damaged_images_are_named(tmp_path, repeated):
    write_shards(
        [RawSample("a", {"txt": b"x"})],
        str(tmp_path / "texts"),
        name="x",
        licence="none",
        provenance={},
        shard_size=5,
        fields={"txt": "caption"},
    )
    with pytest.raises(UserError, match="texts: has no images; name the set that holds them"):
        dedup(str(tmp_path / "texts"))
    with pytest.raises(UserError, match="--bits 9: 0 to 7 bits"):
        dedup(repeated, DedupOptions(bits=9))
    unknown = Selection(split="halves", part="train", within={"nothing": "train"})
    with pytest.raises(UserError, match="has no split 'nothing'"):
        open_dataset(DataConfig(url=repeated, select=(unknown,)))


@given(arrays.arrays(np.uint8, (9, 80), elements=st.sampled_from([0, 1, 255])), st.integers(0, 7))
def test_all_pairs_within_the_distance_are_grouped(signatures, bits):
    files = np.arange(9, dtype=np.uint64)
    expected = {frozenset({n}) for n in range(9)}
    for one in range(9):
        different, away = apart(signatures[one], signatures)
        for other in np.flatnonzero((different <= bits) & (away <= 3)).tolist():
            joined = [group for group in expected if group & {one, other}]
            expected = (expected - set(joined)) | {frozenset().union(*joined)}
    found = {frozenset(group) for group in groups_of(files, signatures, bits, 3)}
    assert found == {group for group in expected if len(group) > 1}


def test_signatures_of_other_encodings_are_near_and_of_other_images_are_not():
    for seed in range(20):
        image = photograph(seed)
        own = signature(image)
        jpeg = Image.open(io.BytesIO(encoded(image, "JPEG", quality=75)))
        bits, colours = apart(own, signature(jpeg)[None])
        assert bits[0] <= 5
        assert colours[0] <= 12
        bits, _ = apart(own, signature(photograph(seed + 100))[None])
        assert bits[0] > 60
