"""Tars as sources: every member is of a sample, or is named."""

import gzip
import io
import json
import tarfile

import pytest
from PIL import Image

from data_pipeline.packing.options import PackOptions
from mezzotint.common.errors import UserError


def png(color: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (6, 6), color).save(content, "PNG")
    return content.getvalue()


def tar(path, *members, kind=tarfile.REGTYPE):
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "a") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content)
            archive.addfile(member, io.BytesIO(content))


def pair(key, caption, image=None):
    return (f"{key}.png", image or png()), (f"{key}.txt", caption.encode())


def test_names_with_dots_are_samples_of_their_own(tmp_path, packed):
    tar(tmp_path / "x" / "a.tar", *pair("img.01", "one"), *pair("img.02", "two"))
    tar(tmp_path / "x" / "a.tar", *pair("deep/d.ir/x.y", "three"), ("x.seg.png", png()))
    tar(tmp_path / "x" / "a.tar", *pair("x", "four"))
    found = packed(tmp_path / "x")
    assert found.captions == [["one"], ["two"], ["three"], ["four"]]
    assert list(found.rejected) == ["a.tar: x.seg"]


def test_members_that_are_not_used_are_counted(tmp_path, packed):
    members = (
        *pair("a", "one"),
        ("a.cls", b"3"),
        ("a.jpg", png()),
        ("README.md", b"about"),
        (".DS_Store", b"x"),
        ("LICENSE", b"free"),
        ("b.json", b"{}"),
    )
    tar(tmp_path / "x" / "a.tar", *members)
    tar(tmp_path / "x" / "a.tar", ("c.png", b""), kind=tarfile.SYMTYPE)
    (tmp_path / "x" / "a.parquet").write_bytes(b"beside")
    found = packed(tmp_path / "x")
    assert (found.captions, found.rejected) == ([["one"]], {})
    assert found.ignored == {
        "file beside the tars": 1,
        "hidden name": 1,
        "link inside an archive": 1,
        "member that is not used": 4,
        "name without a key or an extension": 1,
    }


def test_a_key_that_occurs_again_takes_no_caption_of_another_sample(tmp_path, packed):
    first = (("a.png", png()), *pair("b", "one"))
    second = (("a.txt", b"of the other a"), ("a.png", png("blue")), *pair("b", "two"))
    tar(tmp_path / "x" / "1.tar", *first)
    tar(tmp_path / "x" / "2.tar", *second)
    content = (tmp_path / "x" / "1.tar").read_bytes() + (tmp_path / "x" / "2.tar").read_bytes()
    (tmp_path / "x" / "1.tar").write_bytes(content)
    (tmp_path / "x" / "2.tar").unlink()
    found = packed(tmp_path / "x")
    assert found.captions == [["one"], ["of the other a"], ["two"]]
    assert list(found.rejected) == ["1.tar: a"]


def test_members_in_any_order_are_paired(tmp_path, packed):
    images = [(f"{number}.png", png()) for number in range(4)]
    texts = [(f"{number}.txt", b"%d" % number) for number in reversed(range(4))]
    tar(tmp_path / "x" / "a.tar", *images, *texts)
    assert packed(tmp_path / "x").captions == [["0"], ["1"], ["2"], ["3"]]


def test_captions_and_attributes_of_json_members_are_read(tmp_path, packed):
    fields = {"caption": "in json", "width": 6, "bad": "\ud83d", "nested": {"a": 1}}
    tar(tmp_path / "x" / "a.tar", ("k/a.png", png()), ("k/a.json", json.dumps(fields).encode()))
    tar(tmp_path / "x" / "a.tar", ("k/b.png", png()), ("k/b.json", b"[" * 100_000))
    tar(tmp_path / "b.tar", *pair("c", "packed"))
    (tmp_path / "x" / "b.tgz").write_bytes(gzip.compress((tmp_path / "b.tar").read_bytes()))
    found = packed(tmp_path / "x", PackOptions(folder_attribute="label"))
    assert found.captions == [["in json"], ["packed"]]
    assert found.attributes[0] == {"caption": "in json", "width": 6, "label": "k"}
    assert list(found.rejected) == ["a.tar: k/b"]


@pytest.mark.parametrize("cut", [100, 700, 2000])
def test_a_truncated_tar_is_named(tmp_path, packed, cut):
    tar(tmp_path / "x" / "a.tar", *pair("a", "one"))
    tar(tmp_path / "x" / "b.tar", *pair("b", "two"))
    path = tmp_path / "x" / "b.tar"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"b.tar: .*copy it again"):
        packed(tmp_path / "x")


def test_files_that_no_manifest_lists_are_counted(squares, tmp_path, packed):
    from pathlib import Path

    from data_pipeline.packing.pack import pack

    pack(squares, str(tmp_path / "set"), PackOptions())
    Path(tmp_path / "set" / "more.tar").write_bytes(b"x")
    found = packed(tmp_path / "set")
    assert found.ignored == {"file that is not in the manifest": 1}
