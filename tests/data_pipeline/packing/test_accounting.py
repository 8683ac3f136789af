"""Whatever a source holds: every row, file and member is used, rejected or ignored by a rule."""

import contextlib
import io
import json
import posixpath
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.packing.report import PackReport
from data_pipeline.packing.sources import open_source
from data_pipeline.sets.stored_set import read_manifest
from launch.data.pack import to_json, to_text
from mezzotint.common.errors import UserError


def encoded(format_: str, size: tuple[int, int] = (3, 2)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, "red").save(content, format_)
    return content.getvalue()


GOOD = encoded("PNG")
CONTENTS = [
    *(GOOD, encoded("JPEG"), encoded("GIF"), GOOD[:40], b"", b"a caption", b"two\nlines\n", b" \n"),
    *(b"\xff\xfe", b"nul\0", b'{"caption": "in json"}', b'{"caption": 3}', b"[", b"[" * 100_000),
    "naïve \u2028 caption".encode(),
]
STEMS = ["a", "b", "a.v1", ".hidden", "sub/a", "sub/.git/c", "__MACOSX/x", "ü\n", "c::d"]
SUFFIXES = [".png", ".PNG", ".jpg", ".webp", ".txt", ".TXT", ".caption", ".json", ".md", ""]
MEMBERS = st.lists(
    st.tuples(st.sampled_from(STEMS), st.sampled_from(SUFFIXES), st.sampled_from(CONTENTS)),
    max_size=12,
)


def packed_twice(source: Path, out: Path, options: PackOptions) -> PackReport | None:
    """The report of a set; None if the source is refused. The second time nothing changes."""
    try:
        report = pack(str(source), str(out), options)
    except UserError:
        with pytest.raises(UserError):
            pack(str(source), str(out), options)
        return None
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    again = pack(str(source), str(out), options)
    assert again == report
    assert not again.changes
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert read_manifest(str(out)) == report.manifest
    assert json.loads(to_json(report))["samples"] == report.manifest.sample_count
    assert to_text(report)
    return report


def ignored(report: PackReport) -> int:
    return sum(one.count for one in report.ignored.values())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    numbers = iter(range(100_000))

    def make() -> Path:
        path = tmp_path_factory.mktemp("random", numbered=True) / str(next(numbers))
        path.mkdir()
        return path

    return make


@settings(max_examples=40, deadline=None)
@given(MEMBERS, st.booleans(), st.sampled_from(["several", "one"]))
def test_every_file_of_a_folder_is_accounted_for(root, members, folder_caption, caption_lines):
    place = root()
    source = place / "source"
    source.mkdir()
    files: set[str] = set()
    for stem, suffix, content in members:
        path = source / (stem + suffix)
        with contextlib.suppress(FileExistsError, IsADirectoryError, NotADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            files.add(stem + suffix)
    options = PackOptions(
        shard_size=2, workers=2, folder_caption=folder_caption, caption_lines=caption_lines
    )
    report = packed_twice(source, place / "out", options)
    if report is None:
        return
    visible = [
        name
        for name in files
        if not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    ]
    kinds = {name: posixpath.splitext(name) for name in visible}
    of_images = {
        stem for stem, suffix in kinds.values() if suffix.lower() in (".png", ".jpg", ".webp")
    }
    captions = {
        stem
        for stem, suffix in kinds.values()
        if stem in of_images and suffix.lower() in (".txt", ".caption", ".json")
    }
    pairs = report.manifest.sample_count + len(report.rejected)
    assert pairs + len(captions) + ignored(report) == len(files)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(MEMBERS, st.booleans()), min_size=1, max_size=3))
def test_every_member_of_tars_is_accounted_for(root, archives):
    place = root()
    source = place / "source"
    source.mkdir()
    total = 0
    for number, (members, joined) in enumerate(archives):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            for stem, suffix, data in members:
                member = tarfile.TarInfo(stem + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        name = "0.tar" if joined else f"{number}.tar"
        with (source / name).open("ab") as file:
            file.write(content.getvalue())
        total += len(members)
    options = PackOptions(shard_size=2, workers=2)
    report = packed_twice(source, place / "out", options)
    if report is None:
        return
    opened = open_source(str(source), options)
    used = sum(len(opened.members_used(index)) for index in range(len(opened.names)))
    opened.close()
    assert used + ignored(report) == total
    assert report.manifest.sample_count + len(report.rejected) == len(opened.names)


CELLS = st.one_of(
    st.sampled_from(["good.png", "bad.png", "missing.png", "", None, 3, True, float("nan")]),
    st.text(max_size=8),
    st.sampled_from([["one", "two"], {"en": "a"}, "\ud83d", "nul\0", "pipe://x", "../good.png"]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8))
def test_every_row_of_a_table_is_accounted_for(root, rows):
    place = root()
    (place / "good.png").write_bytes(GOOD)
    (place / "bad.png").write_bytes(GOOD[:40])
    lines = [json.dumps({"image": "good.png", "caption": "sound"})]
    lines += [json.dumps({"image": image, "caption": caption}) for image, caption in rows]
    (place / "t.jsonl").write_text("".join(line + "\n" for line in lines))
    report = packed_twice(place / "t.jsonl", place / "out", PackOptions(shard_size=3, workers=2))
    assert report is not None
    assert report.manifest.sample_count + len(report.rejected) == len(lines)
