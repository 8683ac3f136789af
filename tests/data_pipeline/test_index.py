"""Indexing tars in place: everything is accounted for, and nothing that was known is lost."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import data_pipeline.index
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.index import index
from data_pipeline.indexing.options import IndexOptions
from data_pipeline.inspect import inspect
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.packing.shard_writer import RawSample, write_shard
from data_pipeline.sets.split_rule import SplitRule
from data_pipeline.sets.stored_set import read_contents, read_manifest
from data_pipeline.sets.write import write_contents
from data_pipeline.verify import verify
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import Preprocessing


def png(color="red", size=(8, 8)):
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, "PNG")
    return content.getvalue()


def npy(array, *, pickled=False):
    content = io.BytesIO()
    np.save(content, array, allow_pickle=pickled)
    return content.getvalue()


def tar(path, *members, format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


DAMAGED = {
    "cut": {"txt": b"x", "png": png(size=(64, 64))[:60]},
    "empty": {"txt": b" \n", "png": png()},
    "latin": {"txt": "café".encode("latin-1"), "png": png()},
    "nul": {"txt": b"a tab\0\0", "png": png()},
    "pickle": {"txt": b"x", "codes.npy": npy(np.array([{}], dtype=object), pickled=True)},
    "short": {"txt": b"x", "codes.npy": npy(np.zeros((4, 4), np.int32))[:-3]},
    "nan": {"txt": b"x", "latents.npy": npy(np.array([1.0, np.nan], np.float32))},
    "text": {"txt": b"x", "jpg": b"<html>not found</html>"},
}


@pytest.fixture
def damaged(tmp_path):
    samples = [RawSample(key, members) for key, members in DAMAGED.items()]
    samples += [
        RawSample("good", {"txt": b"\xef\xbb\xbftwo\nlines", "png": png()}),
        RawSample("codes", {"txt": b"x", "codes.npy": npy(np.zeros((4, 4), np.int32))}),
    ]
    write_shard(samples, str(tmp_path), "x-000000.tar")
    return str(tmp_path)


def keys(url: str) -> list[str]:
    return [one.key for one in read_contents(url).samples()]


def test_samples_that_do_not_decode_are_excluded_by_name(damaged):
    report = index(damaged)
    assert keys(damaged) == ["good", "codes"]
    found = {one.split(": ")[1].split(".")[0]: one for one in report.excluded}
    assert found.keys() == DAMAGED.keys()
    for key, words in {
        "cut": "cut.png: not a readable",
        "empty": "empty.txt: the caption is empty",
        "latin": "latin.txt: the caption is not UTF-8 (unexpected end of data at byte 3)",
        "nul": "nul.txt: the caption has a NUL character at position 5",
        "pickle": "pickle.codes.npy: not a plain array",
        "short": "short.codes.npy: not a plain array",
        "nan": "nan.latents.npy: the array has values that are not finite",
        "text": "text.jpg: not a readable",
    }.items():
        assert words in found[key], found[key]
    assert verify(damaged, images=True).problems == ()


def test_without_images_only_images_go_unread(damaged):
    index(damaged, IndexOptions(images=False))
    assert keys(damaged) == ["cut", "text", "good", "codes"]
    assert verify(damaged).problems == ()
    problems = verify(damaged, images=True, workers=2).problems
    assert [one.split(": ")[1] for one in problems] == ["cut.png", "text.jpg"]


def test_verifying_counts_every_sample(squares):
    seen = []
    verify(squares, lambda done, total: seen.append((done, total)), images=True)
    assert seen[-1] == (23, 23)
    assert len(seen) >= 23


def test_indexing_reports_bytes_while_a_shard_is_read(squares):
    seen = []
    index(squares, progress=lambda *state: seen.append(state))
    sizes = [shard.bytes for shard in read_manifest(squares).shards]
    assert seen[-1] == (sum(sizes), sum(sizes))
    assert len(seen) == 23
    assert seen == sorted(seen)


def test_files_that_no_manifest_lists_are_named(squares):
    Path(squares, "notes.txt").write_text("x")
    report = verify(squares)
    assert (report.problems, report.unlisted) == ((), ("notes.txt",))
    assert inspect(squares).unlisted == ("notes.txt",)
    tar(f"{squares}/late.tar", ("a.txt", b"a"))
    [problem] = verify(squares).problems
    assert f"{squares}/late.tar: not in the manifest, so it is not read; delete" in problem
    report = index(squares)
    assert report.excluded == ("late.tar: a: no image (png, jpg, webp) or array (npy)",)
    assert report.ignored == {"not a .tar or .tar.gz file": ["notes.txt"]}
    assert verify(squares).problems == ()


def test_the_same_command_twice_changes_nothing(squares):
    path = Path(squares, "manifest.json")
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert index(squares).changes == ()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_indexing_again_keeps_what_only_the_manifest_knew(squares):
    old = read_contents(squares)
    known = {
        "encoder": "a" * 64,
        "preprocessing": Preprocessing(size=32, fit="crop", filter="box"),
        "shards": tuple(
            shard.model_copy(
                update={
                    "samples": tuple(
                        one.model_copy(update={"attributes": {**one.attributes, "by hand": 1}})
                        for one in shard.samples
                    )
                }
            )
            for shard in old.shards
        ),
    }
    write_contents(squares, old.model_copy(update=known))
    samples = [
        RawSample("0000", {"txt": b"corrected", "png": png(), "json": b'{"shade": "new"}'}),
        RawSample("added", {"txt": b"added", "png": png()}),
    ]
    write_shard(samples, squares, "squares-000000.tar")
    Path(squares, "squares-000004.tar").unlink()
    report = index(squares)
    new = read_contents(squares)
    assert (new.name, new.licence, new.encoder) == ("squares", "CC0-1.0", "a" * 64)
    assert new.preprocessing == known["preprocessing"]
    assert new.fields["png"] == "a square"
    assert new.provenance == {"made by": "a test", "indexed in place": squares}
    assert new.splits["halves"].description == "even numbers train"
    left = ("0000", *(f"{number:04d}" for number in range(6, 20, 2)))
    assert new.splits["halves"].train == left
    attributes = {one.key: one.attributes for one in new.samples()}
    assert attributes["0000"] == {"shade": "new", "number": 0, "by hand": 1}
    assert attributes["0006"] == {"shade": "blue", "number": 6, "by hand": 1}
    assert report.changes == (
        "shards that are gone: 1 (squares-000004.tar)",
        "changed shards: 1 (squares-000000.tar)",
        "new samples, which are in none of the splits halves, all: 1 (added)",
        "samples that are gone, also from splits: 7 (0001, 0002, 0003 ...)",
    )
    assert index(squares).changes == ()
    assert open_dataset(DataConfig(url=squares)).caption(0) == "corrected"


def test_options_change_name_and_licence_alone(squares):
    old = read_manifest(squares)
    report = index(squares, IndexOptions(name="other", licence="MIT"))
    assert report.changes == ("name: 'squares' is now 'other'", "licence: 'CC0-1.0' is now 'MIT'")
    assert report.manifest.splits == old.splits
    assert report.manifest.shards == old.shards


def test_what_is_valid_of_an_invalid_manifest_is_kept(squares):
    path = Path(squares, "manifest.json")
    tree = json.loads(path.read_text())
    tree["licence"] = 3
    path.write_text(json.dumps(tree))
    report = index(squares)
    assert report.manifest.name == "squares"
    assert report.manifest.licence == "unknown"
    assert report.manifest.splits.keys() == {"halves", "all"}
    assert sum(report.manifest.splits["halves"].test) == 11
    [note] = report.notes
    assert "was not valid" in note
    assert f"a copy is {squares}/manifest.json.old" in note
    assert json.loads(Path(squares, "manifest.json.old").read_text()) == tree
    path.write_text("{")
    assert "kept of it: nothing" in index(squares).notes[0]


def test_tars_without_a_sample_are_refused(tmp_path):
    tar(tmp_path / "x.tar", ("a.txt", b"a"), ("a.png", png()[:40]))
    with pytest.raises(UserError, match=r"no sample to index, 1 were excluded; the first: x.tar: "):
        index(str(tmp_path))
    assert not (tmp_path / "manifest.json").exists()


def test_keys_with_dots_are_excluded_with_the_command_that_takes_them(tmp_path):
    members = [(f"photo.{number}.{end}", png()) for number in (1, 2) for end in ("png", "txt")]
    tar(tmp_path / "x.tar", *members, ("a.txt", b"a"), ("a.png", png()))
    report = index(str(tmp_path))
    assert report.manifest.sample_count == 1
    [excluded] = report.excluded
    assert "x.tar: photo.1.png: a key has no dots; rename the members, or copy the" in excluded


def test_names_that_no_shard_can_have_are_refused(tmp_path):
    tar(tmp_path / "my shard.tar", ("a.txt", b"a"), ("a.png", png()))
    with pytest.raises(UserError, match=r"my shard.tar: the name of a shard has .*rename it"):
        index(str(tmp_path))


def test_joined_tars_and_members_that_are_no_samples_are_accounted_for(tmp_path):
    tar(tmp_path / "a.tar", ("a.png", png()), ("a.txt", b"a"), ("README", b"x"))
    tar(tmp_path / "b.tar", ("b.PNG", png()), ("b.txt", b"b"), ("b.json", b"[1]"))
    joined = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").unlink()
    (tmp_path / "a.tar").write_bytes(joined)
    report = index(str(tmp_path))
    assert keys(str(tmp_path)) == ["a", "b"]
    assert report.ignored == {
        "name without a key or an extension": ["a.tar: README"],
        "KEY.json that is not a JSON object: no attributes": ["a.tar: b.json"],
    }
    assert open_dataset(DataConfig(url=str(tmp_path))).captions() == ("a", "b")


MEMBERS = {
    "png": [png(), png()[:50], b""],
    "txt": [b"a caption", b"\xff", b"", b"two\nlines"],
    "json": [b'{"n": 1}', b"{", b"[]", b"\xff"],
    "codes.npy": [npy(np.zeros(3)), b"no array"],
    "other": [b"x"],
}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional={name: st.sampled_from(contents) for name, contents in MEMBERS.items()}
        ).filter(bool),
        min_size=1,
        max_size=6,
    )
)
def test_random_samples_are_used_or_excluded(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("random")
    members = [
        (f"{number}.{name}", content)
        for number, sample in enumerate(samples)
        for name, content in sample.items()
    ]
    tar(folder / "x.tar", ("good.txt", b"good"), ("good.png", png()), *members)
    report = index(str(folder))
    assert report.manifest.sample_count + len(report.excluded) == len(samples) + 1
    assert verify(str(folder), images=True).problems == ()
    again = index(str(folder))
    assert (again.manifest, again.excluded, again.changes) == (report.manifest, report.excluded, ())


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_indexed_tars_of_every_format_pass_the_check_of_their_headers(tmp_path, format):
    names = ["plain", "UPPER", "a-directory/" * 8 + "key", "café"]
    members = [(f"{name}.{end}", png()) for name in names for end in ("PNG", "txt")]
    members = [(name, b"x" if name.endswith("txt") else content) for name, content in members]
    tar(tmp_path / "x.tar", *members, format=format)
    assert index(str(tmp_path)).manifest.shards[0].samples == 4
    assert open_dataset(DataConfig(url=str(tmp_path))).captions() == ("x",) * 4


SOUND = io.BytesIO()
with tarfile.open(fileobj=SOUND, mode="w") as archive:
    for name, content in (("a.png", png()), ("a.txt", b"a"), ("b" * 110 + ".txt", b"b")):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
FIELDS = st.sampled_from([0, 1, 99, 124, 125, 130, 135, 148, 156, 157, 257, 263, 345, 400])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), FIELDS, st.integers(0, 255)), max_size=5))
def test_damaged_headers_are_one_sentence(tmp_path_factory, damage):
    content = bytearray(SOUND.getvalue())
    for block, at, value in damage:
        content[block * 512 + at] = value
        header = content[block * 512 : block * 512 + 512]
        checksum = sum(header) - sum(header[148:156]) + 8 * 32
        content[block * 512 + 148 : block * 512 + 156] = b"%06o\0 " % checksum
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "x.tar").write_bytes(content)
    try:
        index(str(folder))
    except UserError as error:
        (message,) = error.args
    else:
        message = "".join(verify(str(folder), images=True).problems)
    assert "\n" not in message


def many_tars(folder: Path) -> Path:
    folder.mkdir()
    for number in range(5):
        names = [f"{number}{letter}" for letter in "abc"]
        members = [(f"{name}.png", png()) for name in names]
        tar(folder / f"x{number}.tar", *members, *((f"{name}.txt", b"x") for name in names))
    return folder


def test_an_interrupted_index_continues_with_the_tars_that_are_left(tmp_path, monkeypatch):
    folder = many_tars(tmp_path / "tars")
    whole = index(str(many_tars(tmp_path / "whole")))
    real, read = data_pipeline.index.index_one, []

    def one(known, task, advance=None):
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(task.file)
        return real(known, task, advance)

    monkeypatch.setattr(data_pipeline.index, "index_one", one)
    with pytest.raises(KeyboardInterrupt):
        index(str(folder))
    assert not (folder / "manifest.json").exists()
    (folder / "x1.tar").write_bytes((folder / "x1.tar").read_bytes())  # another version
    read.clear()
    report = index(str(folder))
    assert read == ["x1.tar", "x3.tar", "x4.tar"]
    assert report.manifest.shards == whole.manifest.shards
    assert not (folder / ".index").exists()
    assert verify(str(folder)).problems == ()


def test_several_processes_write_the_same_indexes(tmp_path):
    one, two = (many_tars(tmp_path / name) for name in ("one", "two"))
    alone, together = (
        index(str(folder), IndexOptions(processes=count)) for folder, count in ((one, 1), (two, 2))
    )
    assert together.manifest.shards == alone.manifest.shards
    tar(two / "x9.tar", ("0a.png", png()), ("0a.txt", b"x"))
    with pytest.raises(UserError, match=r"key '0a' occurs more than once, in x0.tar and x9.tar"):
        index(str(two), IndexOptions(processes=1))


def test_tables_of_img2dataset_give_attributes_and_failed_rows(tmp_path):
    rows = {
        "key": ["000000000", "000000001", "000000002"],
        "url": ["u0", "u1", "u2"],
        "status": ["success", "failed_to_download", "success"],
        "width": [5, None, 7],
        "similarity": [0.5, 0.1, 0.2],
    }
    for name in ("00000", "00001"):
        members = [(f"{key}.png", png()) for key in ("000000000", "000000002")]
        members += [("000000000.txt", b"x"), ("000000002.txt", b"y")]
        members += [("000000002.json", b'{"width": 8}')]
        members = [(f"{name[-1]}{one}", content) for one, content in members]
        tar(tmp_path / f"{name}.tar", *members)
        keyed = {**rows, "key": [f"{name[-1]}{key}" for key in rows["key"]]}
        pyarrow.parquet.write_table(pyarrow.table(keyed), tmp_path / f"{name}.parquet")
        (tmp_path / f"{name}_stats.json").write_text("{}")
    (tmp_path / "other.parquet").write_bytes(b"")
    report = index(str(tmp_path))
    assert [one.attributes for one in read_contents(str(tmp_path)).samples()][:2] == [
        {"url": "u0", "status": "success", "width": 5},
        {"url": "u2", "status": "success", "width": 8},
    ]
    assert report.changes == ()
    assert report.notes == ("rows that img2dataset did not download: 2, of 2 tars",)
    assert report.ignored == {
        "table of img2dataset, whose columns are attributes": [
            "00000.parquet",
            "00000_stats.json",
            "00001.parquet",
            "00001_stats.json",
        ],
        "not a .tar or .tar.gz file": ["other.parquet"],
    }
    (tmp_path / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"00001.parquet: not a readable Parquet file"):
        index(str(tmp_path))


@pytest.mark.parametrize("by", ["key", "caption", "image"])
def test_a_rule_splits_tars_as_packing_does(tmp_path, by):
    source = tmp_path / "photos"
    source.mkdir()
    for number in range(60):
        (source / f"{number}.png").write_bytes(png(f"#{number // 2:06x}"))
        (source / f"{number}.txt").write_text(f"caption {number // 3}")
    packed = pack(str(source), str(tmp_path / "set"), PackOptions(test_fraction=0.4, split_by=by))
    [split] = packed.manifest.splits.values()
    assert split.description == f"40.0% of the {by}s held out by hash"
    assert 8 < sum(split.test) < 40
    assert sum(split.train) + sum(split.test) == 60
    expected = read_contents(packed.url).splits
    (tmp_path / "set" / "manifest.json").unlink()
    rule = SplitRule(by=by, fraction=0.4)
    index(packed.url, IndexOptions(split=rule))
    assert read_contents(packed.url).splits == expected
    other = SplitRule(by=by, fraction=0.9)
    index(packed.url, IndexOptions(split=other))  # samples stay where they are
    assert read_contents(packed.url).splits["random"].test == expected["random"].test
