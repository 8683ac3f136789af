"""Where a set may be written, and names and captions that look alike."""

import unicodedata

import pytest

from data_pipeline.index import index
from data_pipeline.indexing.options import IndexOptions
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.text.captions import caption_lines
from mezzotint.common.errors import UserError


@pytest.fixture
def source(images):
    for number in range(6):
        (images / f"{number}.txt").write_text(f"caption {number}")
    return images


def test_a_set_is_not_written_over_other_files(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "images-000000.tar").write_bytes(b"a tar of somebody")
    with pytest.raises(UserError, match=r"files of something else \(images-000000\.tar"):
        pack(str(source), str(out), PackOptions())
    assert [(each.name, each.read_bytes()) for each in out.iterdir()] == [
        ("images-000000.tar", b"a tar of somebody")
    ]


@pytest.mark.parametrize("place", ["", "inner", ".."])
def test_a_set_is_not_written_into_its_source_or_around_it(source, place):
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(UserError, match="not the source, in it, or around it"):
        pack(str(source), f"{source}/{place}", PackOptions())
    table = source / "rejected.jsonl"
    table.write_text('{"image": "0.png", "caption": "a"}')
    with pytest.raises(UserError, match="not the source, in it, or around it"):
        pack(str(table), str(source), PackOptions())
    table.unlink()
    assert sorted(source.parent.rglob("*")) == before


@pytest.mark.parametrize("places", [("", "out"), ("source", ""), ("source", " ")])
def test_an_empty_place_is_not_the_working_directory(places):
    with pytest.raises(UserError, match="is empty: give a directory"):
        pack(*places, PackOptions())


def test_tars_whose_keys_repeat_are_both_named_and_packed(source, tmp_path):
    tars = tmp_path / "tars"
    pack(str(source), str(tars), PackOptions())
    index(str(tars), IndexOptions())
    shard = next(tars.glob("*.tar"))
    (tars / "second.tar").write_bytes(shard.read_bytes())
    with pytest.raises(UserError, match=r"occurs more than once, in .* and .*--read tars"):
        index(str(tars), IndexOptions())
    report = pack(str(tars), str(tmp_path / "copy"), PackOptions(read="tars"))
    assert report.manifest.sample_count == 12


def test_names_in_both_unicode_forms_are_one_name(images, packed):
    name = "\u00e9t\u00e9"
    (images / "0.png").rename(images / f"{unicodedata.normalize('NFC', name)}.png")
    (images / f"{unicodedata.normalize('NFD', name)}.txt").write_text("summer")
    assert packed(images).captions == [["summer"]]


def test_what_nobody_sees_is_no_caption(images, packed):
    assert caption_lines("\u200b\u200b\n\u2800 \u3164\na\u200d\n\u2060") == ("a\u200d",)
    (images / "0.txt").write_text("\u200d\u2060")
    (images / "1.txt").write_text("...")
    found = packed(images)
    assert found.captions == [["..."]]
    assert found.rejected["0.png"][0] == "caption missing"
