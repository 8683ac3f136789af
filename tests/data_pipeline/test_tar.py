"""Tar archives as people make them: joined, sorted otherwise, with members that are no samples."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.tar import index_tar, local_tar, split_name
from mezzotint.common.errors import UserError


def tar_bytes(*members, kind=tarfile.REGTYPE, format=tarfile.PAX_FORMAT):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=format) as archive:
        for name, text in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(text) if kind == tarfile.REGTYPE else 0
            info.linkname = "elsewhere" if kind != tarfile.REGTYPE else ""
            archive.addfile(info, io.BytesIO(text))
    return content.getvalue()


def indexed(tmp_path: Path, content: bytes):
    (tmp_path / "x.tar").write_bytes(content)
    return index_tar(tmp_path / "x.tar", "x.tar")


def contents(index, content: bytes):
    return [
        (one.key, {name: content[at : at + size] for name, (at, size) in one.members.items()})
        for one in index.samples
    ]


def test_members_of_a_key_are_one_sample_in_any_order(tmp_path):
    content = tar_bytes(("a.jpg", b"A"), ("b.jpg", b"B"), ("b.txt", b"bb"), ("a.txt", b"aa"))
    assert contents(indexed(tmp_path, content), content) == [
        ("a", {"jpg": b"A", "txt": b"aa"}),
        ("b", {"jpg": b"B", "txt": b"bb"}),
    ]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_joined_archives_are_one(tmp_path, format):
    long = "a-directory/" * 8 + "c"
    parts = (
        tar_bytes(("a.jpg", b"A"), ("a.txt", b"aa"), format=format),
        tar_bytes(("b.jpg", b"B" * 3000), format=format),
        tar_bytes(("b.txt", b"bb"), (f"{long}.txt", b"cc"), format=format),
    )
    content = b"".join(parts)
    assert contents(indexed(tmp_path, content), content) == [
        ("a", {"jpg": b"A", "txt": b"aa"}),
        ("b", {"jpg": b"B" * 3000, "txt": b"bb"}),
        (long, {"txt": b"cc"}),
    ]


def test_keys_that_begin_again_in_a_joined_archive_are_other_samples(tmp_path):
    one = tar_bytes(("0.jpg", b"A"), ("0.txt", b"first"))
    two = tar_bytes(("0.jpg", b"B"), ("0.txt", b"second"))
    content = one + two
    assert contents(indexed(tmp_path, content), content) == [
        ("0", {"jpg": b"A", "txt": b"first"}),
        ("0", {"jpg": b"B", "txt": b"second"}),
    ]


@pytest.mark.parametrize("rest", [b"x" * 100, b"\x01" * 1024, b"PK\x03\x04" * 400])
def test_bytes_after_the_end_of_an_archive_are_an_error(tmp_path, rest):
    with pytest.raises(UserError, match=r"x\.tar: (not a complete tar archive|the tar archive is)"):
        indexed(tmp_path, tar_bytes(("a.txt", b"a")) + rest)


def test_members_that_are_no_samples_are_counted_by_rule(tmp_path):
    content = (
        tar_bytes(
            ("README", b"x"),
            (".hidden.txt", b"x"),
            ("._a.jpg", b"x"),
            (".git/a.txt", b"x"),
            ("./a.txt", b"a"),
            ("b\udcff.txt", b"x"),
        )
        + tar_bytes(("c.jpg", b""), kind=tarfile.SYMTYPE)
        + tar_bytes(("d.jpg", b""), kind=tarfile.LNKTYPE)
        + tar_bytes(("e.jpg", b""), kind=tarfile.FIFOTYPE)
        + tar_bytes(("folder", b""), kind=tarfile.DIRTYPE)
    )
    index = indexed(tmp_path, content)
    assert [one.key for one in index.samples] == ["./a"]
    assert index.ignored == {
        "name without a key or an extension": ["README"],
        "hidden name": [".hidden.txt", "._a.jpg", ".git/a.txt"],
        "name that is not UTF-8": ["b\\udcff.txt"],
        "link inside an archive": ["c.jpg", "d.jpg"],
        "not a plain file": ["e.jpg"],
    }


def test_extensions_are_compared_in_lower_case():
    assert split_name("a/Key.JPG") == ("a/Key", "jpg")


NAMES = st.sampled_from(["a.jpg", "a.txt", "b.txt", "b.png", "README", ".x.txt", "c.tar.gz"])


@given(st.lists(st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=5), max_size=4))
def test_every_member_is_in_a_sample_or_ignored(tmp_path_factory, archives):
    content = b"".join(tar_bytes(*members) for members in archives)
    written = sum(map(len, archives))
    index = indexed(tmp_path_factory.mktemp("tar"), content or bytes(1024))
    found = sum(len(one.members) for one in index.samples)
    assert found + sum(map(len, index.ignored.values())) == written


def test_a_tar_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x.tar").mkdir()
    with (
        pytest.raises(UserError, match=r"x.tar: cannot be read .*; correct its permissions"),
        local_tar(str(tmp_path / "x.tar")) as tar,
    ):
        index_tar(tar.plain, "x.tar")
