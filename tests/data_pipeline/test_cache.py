import dataclasses
import gzip
import hashlib
import multiprocessing
import os
import threading
import time
from pathlib import Path

import fsspec
import pytest

from data_pipeline.cache import ShardCache, node_cache
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.sets.stored_set import read_manifest
from mezzotint.common.errors import UserError
from mezzotint.common.locks import file_lock


def copies(cache):
    return sorted(path.name for path in cache.glob("*/*.tar*"))


def test_remote_shards_are_read_through_the_cache(remote, squares, cache):
    assert (
        open_dataset(DataConfig(url=remote)).captions()
        == open_dataset(DataConfig(url=squares)).captions()
    )
    assert copies(cache) == sorted(f"{s.sha256}.tar" for s in read_manifest(squares).shards)


def test_compressed_shards_are_expanded_once(make_set, squares, cache):
    url = make_set(compress=True)
    dataset = open_dataset(DataConfig(url=url))
    assert dataset.captions() == open_dataset(DataConfig(url=squares)).captions()
    times = [path.stat().st_ino for path in sorted(cache.glob("*/*.tar"))]
    assert open_dataset(DataConfig(url=url)).captions() == dataset.captions()
    assert [path.stat().st_ino for path in sorted(cache.glob("*/*.tar"))] == times


def test_cached_shards_are_read_when_the_source_is_gone(remote, cache):
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
    with pytest.raises(UserError, match=r"squares-000001.tar: does not match its manifest"):
        dataset.caption(5)
    assert copies(cache) == []


def test_a_stalled_transfer_is_aborted_and_named(remote, squares, tmp_path, monkeypatch):
    shard = read_manifest(squares).shards[0]
    release = threading.Event()
    store = type(fsspec.filesystem("memory"))
    monkeypatch.setattr(store, "get_file", lambda *_, **__: release.wait(10))
    cache = ShardCache(tmp_path / "c", timeout=0.05, retry_wait=0.01)
    with pytest.raises(UserError, match=r"squares-000000.tar: cannot be read \(no response for"):
        cache.fetch(remote, shard)
    release.set()


def test_a_slow_transfer_is_not_aborted(remote, squares, tmp_path, monkeypatch):
    shard = read_manifest(squares).shards[0]
    content = Path(squares, shard.name).read_bytes()

    def drip(self, source, target, **_):
        with open(target, "wb") as file:
            for start in range(0, len(content), 1024):
                file.write(content[start : start + 1024])
                file.flush()
                time.sleep(0.05)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", drip)
    began = time.monotonic()
    ShardCache(tmp_path / "c", timeout=0.4).fetch(remote, shard)
    assert time.monotonic() - began > 0.5


def test_a_transfer_that_fails_twice_succeeds_the_third_time(
    remote, squares, tmp_path, monkeypatch
):
    shard = read_manifest(squares).shards[0]
    store = type(fsspec.filesystem("memory"))
    real, failures = store.get_file, iter([OSError("503"), OSError("503")])

    def get_file(self, *paths, **options):
        fault = next(failures, None)
        if fault:
            raise fault
        return real(self, *paths, **options)

    monkeypatch.setattr(store, "get_file", get_file)
    cache = ShardCache(tmp_path / "c", retry_wait=0.001)
    assert cache.fetch(remote, shard).stat().st_size == shard.bytes


def test_a_missing_shard_is_named_without_a_retry(squares, tmp_path):
    shard = read_manifest(squares).shards[0]
    Path(squares, shard.name).unlink()
    with pytest.raises(UserError, match=r"squares-000000.tar: no such file"):
        ShardCache(tmp_path / "c").fetch(squares, shard)


def test_only_leftovers_of_killed_processes_are_deleted(remote, squares, tmp_path):
    first, second, third = read_manifest(squares).shards[:3]
    cache = tmp_path / "c"
    partials = {}
    for shard in (first, second, third):
        target = cache / shard.sha256[:2] / f"{shard.sha256}.tar"
        target.parent.mkdir(parents=True, exist_ok=True)
        partials[shard.name] = target.with_suffix(".tar.123-1")
        partials[shard.name].write_bytes(b"torn")
    with file_lock(cache / third.sha256[:2] / f"{third.sha256}.lock"):  # someone is fetching it
        assert ShardCache(cache, limit=10**6).fetch(remote, first).read_bytes()
        left = [name for name, path in partials.items() if path.exists()]
    assert left == [third.name]


def test_the_least_recently_used_shards_are_evicted(squares, tmp_path):
    shards = read_manifest(squares).shards
    cache = ShardCache(tmp_path / "c", limit=3 * shards[0].bytes)
    for number, shard in enumerate((shards[0], shards[1], shards[2], shards[0], shards[3])):
        os.utime(cache.fetch(squares, shard), (number, number))
    assert copies(tmp_path / "c") == sorted(f"{shards[n].sha256}.tar" for n in (0, 2, 3))


def test_a_shard_larger_than_the_cache_is_refused(squares, tmp_path):
    shard = read_manifest(squares).shards[0]
    with pytest.raises(UserError, match=r"MEZZOTINT_CACHE_BYTES=100: shard 'squares-000000.tar'"):
        ShardCache(tmp_path / "c", limit=100).fetch(squares, shard)


def test_a_set_larger_than_the_cache_is_read(remote, squares, cache, monkeypatch):
    one = read_manifest(squares).shards[0].bytes
    monkeypatch.setenv("MEZZOTINT_CACHE_BYTES", str(2 * one))
    dataset = open_dataset(DataConfig(url=remote))
    assert len(dataset.captions()) == 23
    assert len(copies(cache)) <= 2


@pytest.mark.parametrize("value", ["0", "-1", "1e9", "10GB", ""])
def test_cache_sizes_are_whole_numbers_of_bytes(monkeypatch, value):
    monkeypatch.setenv("MEZZOTINT_CACHE_BYTES", value)
    with pytest.raises(UserError, match=f"MEZZOTINT_CACHE_BYTES={value}: "):
        node_cache()


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
    with pytest.raises(UserError, match=r"the shard cache cannot be created .*set MEZZOTINT_CACHE"):
        ShardCache(tmp_path / "file" / "c").fetch(squares, read_manifest(squares).shards[0])


def test_a_file_that_is_not_gzip_is_named(make_set, tmp_path):
    url = make_set(compress=True)
    manifest = read_manifest(url)
    shard = manifest.shards[0]
    plain = gzip.decompress(Path(url, shard.name).read_bytes())
    Path(url, shard.name).write_bytes(plain)
    digest = hashlib.sha256(plain).hexdigest()
    lying = dataclasses.replace(shard, bytes=len(plain), sha256=digest)
    with pytest.raises(UserError, match="not a complete gzip file"):
        ShardCache(tmp_path / "c").fetch(url, lying)


def test_prefetched_shards_are_cached(remote, cache):
    dataset = open_dataset(DataConfig(url=remote))
    dataset.prefetch([0, 1])
    until = time.monotonic() + 10
    while len(list(cache.glob("*/*.tar"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
