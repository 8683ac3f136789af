import io
import json
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from PIL import Image

import mezzotint.common.disk_space
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.index import index
from data_pipeline.indexing.options import IndexOptions
from data_pipeline.manifest import Manifest
from data_pipeline.packing.shard_writer import RawSample, write_shard
from data_pipeline.sets.contents import SetContents, Split
from data_pipeline.sets.stored_set import read_contents, read_manifest
from data_pipeline.tar import index_tar, split_name
from data_pipeline.verify import verify
from mezzotint.common.errors import UserError

READ_WITH_WEBDATASET = """
import json, sys, webdataset
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False):
    print(json.dumps([sample["__key__"], sample["txt"].decode(), sample["png"][:4].hex()]))
"""


@pytest.mark.parametrize("compress", [False, True])
def test_plain_webdataset_reads_the_shards(make_set, compress):
    names = sorted(str(path) for path in Path(make_set(compress=compress)).glob("*.tar*"))
    # A process of its own: webdataset leaves files open.
    command = [sys.executable, "-c", READ_WITH_WEBDATASET, *names]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [json.loads(line) for line in lines.splitlines()]
    assert [key for key, _, _ in found] == [f"{n:04d}" for n in range(23)]
    assert found[7] == ["0007", "dark square 7", b"\x89PNG".hex()]


def test_manifest_offsets_lead_to_the_members(squares):
    for shard in read_contents(squares).shards:
        content = Path(squares, shard.name).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for sample in shard.samples:
                for extension, (offset, size) in sample.members.items():
                    member = archive.extractfile(f"{sample.key}.{extension}").read()
                    assert content[offset : offset + size] == member


def test_equal_samples_give_equal_bytes(make_set):
    for compress in (False, True):
        one = read_manifest(make_set(f"a{compress}", compress=compress))
        two = read_manifest(make_set(f"b{compress}", compress=compress))
        assert one.fingerprint == two.fingerprint


def test_writing_leaves_no_other_files(squares):
    names = {path.name for path in Path(squares).iterdir()}
    shards = read_manifest(squares).shards
    assert [shard.name for shard in shards] == [f"squares-{n:06d}.tar" for n in range(5)]
    assert names == {"manifest.json"} | {
        name for shard in shards for name in (shard.name, shard.index_name)
    }


@pytest.mark.parametrize("key", ["a.b", "", ".hidden", "dir/"])
def test_keys_that_webdataset_would_split_elsewhere_are_refused(key):
    with pytest.raises(UserError, match="a key is a name without dots"):
        RawSample(key, {"txt": b"x"})


def test_a_full_disk_is_an_error_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        mezzotint.common.disk_space.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000)
    )
    with pytest.raises(
        UserError, match=r"no disk space for the next shard: 17 MB are needed and 0 MB are free"
    ):
        write_shard([RawSample("a", {"txt": b"x" * 5000})], str(tmp_path / "out"), "a-000000.tar")
    assert not (tmp_path / "out").exists()


def test_a_disk_without_inodes_is_an_error(tmp_path, monkeypatch):
    roomy = {"f_frsize": 4096, "f_blocks": 1 << 30, "f_bfree": 1 << 30, "f_bavail": 1 << 30}
    status = SimpleNamespace(**roomy, f_files=10, f_favail=0)
    monkeypatch.setattr(mezzotint.common.disk_space.os, "statvfs", lambda path: status)
    with pytest.raises(UserError, match="no inodes left"):
        mezzotint.common.disk_space.check_space(tmp_path, 1, purpose="a file")


def test_names_split_as_webdataset_splits_them():
    assert split_name("a/key.codes.npy") == ("a/key", "codes.npy")
    assert split_name("a.b/key.txt") == ("a.b/key", "txt")
    assert split_name("key") is None
    assert split_name("a/.hidden.txt") is None


def test_every_truncation_of_a_tar_is_an_error(squares, tmp_path):
    whole = Path(squares, "squares-000000.tar").read_bytes()
    content_end = max(
        offset + size
        for sample in read_contents(squares).shards[0].samples
        for offset, size in sample.members.values()
    )
    for cut in range(0, content_end, 512):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"cut\.tar: "):
            index_tar(tmp_path / "cut.tar", "cut.tar")


def test_a_corrupt_header_in_the_middle_is_an_error(squares, tmp_path):
    content = bytearray(Path(squares, "squares-000000.tar").read_bytes())
    offset, _ = read_contents(squares).shards[0].samples[2].members["png"]
    content[offset - 512 : offset - 400] = b"\xff" * 112
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.tar: the tar archive is cut off or corrupt"):
        index_tar(tmp_path / "bad.tar", "bad.tar")


def test_an_intact_set_verifies(make_set):
    for compress in (False, True):
        report = verify(make_set(f"set{compress}", compress=compress))
        assert report.problems == ()
        assert (len(report.manifest.shards), report.manifest.sample_count) == (5, 23)


def test_verify_names_every_kind_of_damage(squares):
    Path(squares, "squares-000000.tar").unlink()
    with Path(squares, "squares-000001.tar").open("ab") as file:
        file.write(b"x")
    content = bytearray(Path(squares, "squares-000002.tar").read_bytes())
    content[600] ^= 1
    Path(squares, "squares-000002.tar").write_bytes(content)
    problems = verify(squares).problems
    assert [problem.rsplit("/", 1)[1].split(":")[0] for problem in problems] == [
        "squares-000000.tar",
        "squares-000001.tar",
        "squares-000002.tar",
    ]
    assert "missing" in problems[0]
    assert "bytes instead of" in problems[1]
    assert "sha256" in problems[2]


def test_verify_names_a_damaged_compressed_shard(make_set):
    url = make_set(compress=True)
    path = Path(url, "squares-000000.tar.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert len(verify(url).problems) == 1


def test_an_existing_tar_set_is_indexed_in_place(make_set):
    for compress in (False, True):
        url = make_set(f"set{compress}", compress=compress)
        written = read_manifest(url)
        Path(url, "manifest.json").unlink()
        report = index(url, IndexOptions(name="squares"))
        manifest = report.manifest
        assert (report.excluded, report.ignored, report.changes) == ((), {}, ())
        assert [one.sha256 for one in manifest.shards] == [one.sha256 for one in written.shards]
        assert read_manifest(url) == manifest


def test_indexing_names_excluded_samples(tmp_path):
    square = io.BytesIO()
    Image.new("RGB", (4, 4)).save(square, "PNG")
    samples = [
        RawSample("a", {"txt": b"a", "png": square.getvalue()}),
        RawSample("b", {"png": b"1"}),
        RawSample("c", {"txt": b"c"}),
    ]
    write_shard(samples, str(tmp_path), "x-000000.tar")
    report = index(str(tmp_path))
    assert [one.key for one in read_contents(str(tmp_path)).samples()] == ["a"]
    assert report.excluded == (
        "x-000000.tar: b: no caption (txt)",
        "x-000000.tar: c: no image (png, jpg, webp) or array (npy)",
    )


def test_keys_that_repeat_in_every_shard_are_refused(tmp_path):
    for number in range(2):
        sample = RawSample("0", {"txt": b"a", "png": b"1"})
        write_shard([sample], str(tmp_path), f"x-{number:06d}.tar")
    with pytest.raises(
        UserError, match=r"key '0' occurs more than once, in x-000000\.tar and x-000001\.tar; pack"
    ):
        index(str(tmp_path), IndexOptions(images=False))


def test_manifests_refuse_splits_that_overlap_or_name_missing_keys(squares):
    fields = read_contents(squares).model_dump()
    for train, test, message in (
        (("0001",), ("0001",), "in train and in test"),
        (("nobody",), (), "that no shard holds"),
    ):
        fields["splits"] = {"s": Split(description="", train=train, test=test).model_dump()}
        with pytest.raises(ValueError, match=message):
            SetContents.model_validate(fields)


@pytest.mark.parametrize("name", ["../x.tar", "/x.tar", "a/b.tar", ".x.tar"])
def test_shard_names_are_no_paths(squares, name):
    fields = read_manifest(squares).model_dump()
    fields["shard_columns"]["name"] = (name, *fields["shard_columns"]["name"][1:])
    with pytest.raises(ValueError, match="name"):
        Manifest.model_validate(fields)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Quiet."""


def test_a_set_over_http_is_read_and_checked(squares):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=squares)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = DataConfig(url=f"http://127.0.0.1:{server.server_port}")
        captions = open_dataset(config).captions()
        Path(squares, "squares-000003.tar").unlink()
        with pytest.raises(UserError, match=r"squares-000003.tar: this shard is in the manifest"):
            open_dataset(config)
        server.shutdown()
    assert captions[22] == "blue square 22"


def test_writing_to_an_object_store_gives_the_same_set(squares, write_squares):
    system = fsspec.filesystem("memory")
    try:
        assert (
            write_squares("memory://bucket/out").fingerprint == read_manifest(squares).fingerprint
        )
        assert (
            read_manifest("memory://bucket/out").fingerprint == read_manifest(squares).fingerprint
        )
    finally:
        system.rm("/bucket", recursive=True)
