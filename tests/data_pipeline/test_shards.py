import gzip
import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

import data_pipeline.space
from data_pipeline.build import RawSample, write_shard
from data_pipeline.cache import ShardCache, cache_limit
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, Split, read_manifest
from data_pipeline.tar import index_tar, split_name
from data_pipeline.verify import index, verify

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
    manifest = read_manifest(squares)
    for shard in manifest.shards:
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


def test_nothing_but_the_set_is_left_behind(squares):
    names = sorted(path.name for path in Path(squares).iterdir())
    assert names == ["manifest.json", *(f"squares-{n:06d}.tar" for n in range(5))]


@pytest.mark.parametrize("key", ["a.b", "", ".hidden", "dir/"])
def test_keys_that_webdataset_would_split_elsewhere_are_refused(key):
    with pytest.raises(DataError, match="a key is a name without dots"):
        RawSample(key, {"txt": b"x"})


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        data_pipeline.space.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000)
    )
    with pytest.raises(
        DataError, match=r"no disk space for the next shard: .* bytes needed, 1,000"
    ):
        write_shard([RawSample("a", {"txt": b"x" * 5000})], str(tmp_path / "out"), "a-000000.tar")
    assert not (tmp_path / "out").exists()


def test_a_disk_without_inodes_is_noticed(tmp_path, monkeypatch):
    roomy = {"f_frsize": 4096, "f_blocks": 1 << 30, "f_bfree": 1 << 30, "f_bavail": 1 << 30}
    status = SimpleNamespace(**roomy, f_files=10, f_favail=0)
    monkeypatch.setattr(data_pipeline.space.os, "statvfs", lambda path: status)
    with pytest.raises(DataError, match="no inodes left"):
        data_pipeline.space.check_space(tmp_path, 1, purpose="a file")


def test_names_split_as_webdataset_splits_them():
    assert split_name("a/key.codes.npy") == ("a/key", "codes.npy")
    assert split_name("a.b/key.txt") == ("a.b/key", "txt")
    assert split_name("key") is None
    assert split_name("a/.hidden.txt") is None


def test_every_cut_of_a_tar_is_noticed(squares, tmp_path):
    whole = Path(squares, "squares-000000.tar").read_bytes()
    content_end = max(
        offset + size
        for sample in read_manifest(squares).shards[0].samples
        for offset, size in sample.members.values()
    )
    for cut in range(0, content_end, 512):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"cut\.tar: "):
            index_tar(tmp_path / "cut.tar", "cut.tar")


def test_a_corrupt_header_in_the_middle_is_noticed(squares, tmp_path):
    content = bytearray(Path(squares, "squares-000000.tar").read_bytes())
    offset, _ = read_manifest(squares).shards[0].samples[2].members["png"]
    content[offset - 512 : offset - 400] = b"\xff" * 112
    (tmp_path / "bad.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.tar: the tar archive is cut or corrupt after byte"):
        index_tar(tmp_path / "bad.tar", "bad.tar")


def test_a_sound_set_verifies(make_set):
    for compress in (False, True):
        report = verify(make_set(f"set{compress}", compress=compress))
        assert report.problems == ()
        assert (report.shards, report.samples) == (5, 23)


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
    assert "promised" in problems[1]
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
        manifest, left_out = index(url, name="squares")
        assert left_out == ()
        assert manifest.shards == written.shards
        assert read_manifest(url) == manifest


def test_indexing_names_the_samples_it_leaves_out(tmp_path):
    samples = [
        RawSample("a", {"txt": b"a", "png": b"1"}),
        RawSample("b", {"png": b"1"}),
        RawSample("c", {"txt": b"c"}),
    ]
    write_shard(samples, str(tmp_path), "x-000000.tar")
    manifest, left_out = index(str(tmp_path), name="x")
    assert [one.key for one in manifest.samples()] == ["a"]
    assert left_out == (
        "x-000000.tar: b: no caption (txt)",
        "x-000000.tar: c: no image (png, jpg, webp) or array (npy)",
    )


def test_keys_that_restart_in_every_shard_are_not_mixed_up_but_refused(tmp_path):
    for number in range(2):
        sample = RawSample("0", {"txt": b"a", "png": b"1"})
        write_shard([sample], str(tmp_path), f"x-{number:06d}.tar")
    with pytest.raises(DataError, match="key '0' occurs more than once; write it anew with"):
        index(str(tmp_path), name="x")


def test_manifests_refuse_splits_that_overlap_or_dangle(squares):
    fields = read_manifest(squares).model_dump()
    for train, test, message in (
        (("0001",), ("0001",), "in train and in test"),
        (("nobody",), (), "that no shard holds"),
    ):
        fields["splits"] = {"s": Split(description="", train=train, test=test).model_dump()}
        with pytest.raises(ValueError, match=message):
            Manifest.model_validate(fields)


@pytest.mark.parametrize("name", ["../x.tar", "/x.tar", "a/b.tar", ".x.tar"])
def test_shard_names_are_no_paths(squares, name):
    fields = read_manifest(squares).model_dump()
    fields["shards"][0]["name"] = name
    with pytest.raises(ValueError, match="name"):
        Manifest.model_validate(fields)


@pytest.fixture
def remote(squares):
    """The squares behind a URL that is not local."""
    system = fsspec.filesystem("memory")
    system.put(squares, "/bucket/squares", recursive=True)
    yield "memory://bucket/squares"
    system.rm("/bucket", recursive=True)


def copies(cache):
    return sorted(path.name for path in cache.glob("*/*.tar*"))


def test_remote_shards_are_read_through_the_cache(remote, squares, cache):
    assert (
        open_dataset(DataConfig(url=remote)).captions()
        == open_dataset(DataConfig(url=squares)).captions()
    )
    assert copies(cache) == sorted(f"{s.sha256}.tar" for s in read_manifest(squares).shards)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Quiet."""


def test_a_set_on_a_web_server_is_read_and_checked(squares):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=squares)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = DataConfig(url=f"http://127.0.0.1:{server.server_port}")
        captions = open_dataset(config).captions()
        Path(squares, "squares-000003.tar").unlink()
        with pytest.raises(DataError, match=r"squares-000003.tar: this shard is in the manifest"):
            open_dataset(config)
        server.shutdown()
    assert captions[22] == "blue square 22"


def test_compressed_shards_are_expanded_once(make_set, squares, cache):
    url = make_set(compress=True)
    dataset = open_dataset(DataConfig(url=url))
    assert dataset.captions() == open_dataset(DataConfig(url=squares)).captions()
    times = [path.stat().st_ino for path in sorted(cache.glob("*/*.tar"))]
    assert open_dataset(DataConfig(url=url)).captions() == dataset.captions()
    assert [path.stat().st_ino for path in sorted(cache.glob("*/*.tar"))] == times


def test_cached_copies_serve_when_the_source_is_gone(remote, cache):
    dataset = open_dataset(DataConfig(url=remote))
    captions = dataset.captions()
    fsspec.filesystem("memory").rm("/bucket/squares/squares-000001.tar")
    dataset.reader.close()
    assert dataset.captions() == captions


def test_a_remote_shard_that_does_not_match_is_refused_and_not_kept(remote, cache):
    system = fsspec.filesystem("memory")
    content = bytearray(system.cat_file("/bucket/squares/squares-000001.tar"))
    content[700] ^= 1
    system.pipe_file("/bucket/squares/squares-000001.tar", bytes(content))
    dataset = open_dataset(DataConfig(url=remote))
    dataset.reader.cache.retry_wait = 0.01
    with pytest.raises(DataError, match=r"squares-000001.tar: does not match its manifest"):
        dataset.caption(5)
    assert copies(cache) == []


def test_a_transfer_that_hangs_is_given_up_with_its_name(squares, tmp_path, monkeypatch):
    shard = read_manifest(squares).shards[0]
    release = threading.Event()
    local = fsspec.filesystem("file")
    monkeypatch.setattr(type(local), "get_file", lambda *_, **__: release.wait(10))
    cache = ShardCache(tmp_path / "c", deadline=0.05, retry_wait=0.01)
    with pytest.raises(DataError, match=r"squares-000000.tar: the transfer took longer than"):
        cache.fetch(squares, shard)
    release.set()


def test_a_transfer_that_fails_twice_succeeds_the_third_time(squares, tmp_path, monkeypatch):
    shard = read_manifest(squares).shards[0]
    local = type(fsspec.filesystem("file"))
    real, failures = local.get_file, iter([OSError("503"), OSError("503")])

    def get_file(self, *paths, **options):
        fault = next(failures, None)
        if fault:
            raise fault
        return real(self, *paths, **options)

    monkeypatch.setattr(local, "get_file", get_file)
    cache = ShardCache(tmp_path / "c", retry_wait=0.001)
    assert cache.fetch(squares, shard).stat().st_size == shard.bytes


def test_a_shard_that_is_not_there_is_named_at_once(squares, tmp_path):
    shard = read_manifest(squares).shards[0]
    Path(squares, shard.name).unlink()
    with pytest.raises(DataError, match=r"squares-000000.tar: cannot be fetched"):
        ShardCache(tmp_path / "c").fetch(squares, shard)


def test_the_least_recently_used_copies_are_forgotten(squares, tmp_path):
    shards = read_manifest(squares).shards
    cache = ShardCache(tmp_path / "c", limit=3 * shards[0].bytes)
    for number, shard in enumerate((shards[0], shards[1], shards[2], shards[0], shards[3])):
        os.utime(cache.fetch(squares, shard), (number, number))
    assert copies(tmp_path / "c") == sorted(f"{shards[n].sha256}.tar" for n in (0, 2, 3))


def test_a_shard_larger_than_the_cache_is_refused(squares, tmp_path):
    shard = read_manifest(squares).shards[0]
    with pytest.raises(DataError, match=r"MEZZOTINT_CACHE_BYTES=100: shard 'squares-000000.tar'"):
        ShardCache(tmp_path / "c", limit=100).fetch(squares, shard)


def test_a_small_cache_still_serves_the_whole_set(remote, squares, cache, monkeypatch):
    one = read_manifest(squares).shards[0].bytes
    monkeypatch.setenv("MEZZOTINT_CACHE_BYTES", str(2 * one))
    dataset = open_dataset(DataConfig(url=remote))
    assert len(dataset.captions()) == 23
    assert len(copies(cache)) <= 2


@pytest.mark.parametrize("value", ["0", "-1", "1e9", "10GB", ""])
def test_cache_sizes_are_whole_numbers_of_bytes(monkeypatch, value):
    monkeypatch.setenv("MEZZOTINT_CACHE_BYTES", value)
    with pytest.raises(DataError, match=f"MEZZOTINT_CACHE_BYTES={value}: "):
        cache_limit()


def fetch_counted(url, shard, directory, log):
    real = type(fsspec.filesystem("file")).get_file

    def get_file(self, *paths, **options):
        with open(log, "a") as file:
            file.write("x")
        return real(self, *paths, **options)

    type(fsspec.filesystem("file")).get_file = get_file
    ShardCache(Path(directory)).fetch(url, shard)


def test_processes_of_a_node_share_one_download(squares, tmp_path):
    shard = read_manifest(squares).shards[0]
    context = multiprocessing.get_context("fork")
    arguments = (squares, shard, str(tmp_path / "c"), str(tmp_path / "log"))
    processes = [context.Process(target=fetch_counted, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text() == "x"


def test_an_unwritable_cache_is_named(squares, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"the shard cache cannot be made .*set MEZZOTINT_CACHE"):
        ShardCache(tmp_path / "file" / "c").fetch(squares, read_manifest(squares).shards[0])


def test_a_file_that_only_claims_to_be_gzip_is_named(make_set, tmp_path):
    url = make_set(compress=True)
    manifest = read_manifest(url)
    shard = manifest.shards[0]
    plain = gzip.decompress(Path(url, shard.name).read_bytes())
    Path(url, shard.name).write_bytes(plain)
    lying = shard.model_copy(
        update={"bytes": len(plain), "sha256": hashlib.sha256(plain).hexdigest()}
    )
    with pytest.raises(DataError, match="is not a gzip file"):
        ShardCache(tmp_path / "c").fetch(url, lying)


def test_prefetched_shards_are_at_hand(remote, cache):
    dataset = open_dataset(DataConfig(url=remote))
    dataset.prefetch([0, 1])
    until = time.monotonic() + 10
    while len(copies(cache)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert len([name for name in copies(cache) if name.endswith(".tar")]) == 2


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
