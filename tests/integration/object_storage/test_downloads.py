"""Shards are fetched once, ahead of time, and again after a failed transfer."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.cache import ShardCache
from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.sets.stored_set import read_manifest
from data_pipeline.stream import Stream
from mezzotint.common.errors import UserError

pytestmark = pytest.mark.s3

READ_SHARE = """
import json, sys
from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.stream import Stream

if __name__ == "__main__":
    url, rank, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    config = DataConfig(url=url, image=ImageConfig(size=8), shuffle_block=2, workers=2)
    batches = iter(Stream(open_dataset(config), global_batch=12, rank=rank, world=2, seed=3))
    seen = [(b.keys, b.images.double().sum().item()) for b, _ in zip(batches, range(10))]
    json.dump(seen, open(out, "w"))
    batches.close()
"""
FETCH = """
import sys
from pathlib import Path
from data_pipeline.cache import ShardCache
from data_pipeline.sets.stored_set import read_manifest

manifest = read_manifest(sys.argv[1])
ShardCache(Path(sys.argv[2])).fetch(sys.argv[1], manifest.shards[0])
"""


def test_two_ranks_with_workers_fetch_every_shard_of_a_cold_cache_once(
    proxy, people, folder, tmp_path
):
    environment = {**os.environ, **proxy.environment()}
    script = tmp_path / "share.py"
    script.write_text(READ_SHARE)
    outs = [tmp_path / f"{rank}.json" for rank in range(2)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), people, str(rank), str(out)],
            env={**environment, "PYTHONPATH": str(Path.cwd())},
        )
        for rank, out in enumerate(outs)
    ]
    assert [rank.wait(200) for rank in ranks] == [0, 0]
    shards = read_manifest(people).shards
    fetched = {name: count for name, count in proxy.fetched.items() if name.endswith(".tar")}
    assert fetched == {f"tests/people/{shard.name}": 1 for shard in shards}
    copies = sorted((tmp_path / "cache").glob("*/*.tar*"))
    assert [path.name for path in copies] == sorted(f"{shard.sha256}.tar" for shard in shards)
    local = open_dataset(DataConfig(url=folder, image=ImageConfig(size=8), shuffle_block=2))
    expected = iter(Stream(local, global_batch=12, rank=0, world=1, seed=3))
    for shares in zip(*(json.loads(out.read_text()) for out in outs), strict=True):
        batch = next(expected)
        assert tuple(key for keys, _ in shares for key in keys) == batch.keys
        total = sum(part for _, part in shares)
        assert total == pytest.approx(batch.images.double().sum().item(), rel=1e-12)
    expected.close()


def test_a_node_fetches_the_shards_of_its_lanes_alone(proxy, people, use_env, tmp_path):
    use_env(proxy.environment())
    shards = read_manifest(people).shards
    seen = []
    for node in range(2):
        config = DataConfig(url=people, shuffle_block=2, lanes=2, cache=str(tmp_path / str(node)))
        data = open_dataset(config)
        stream = Stream(data, global_batch=2, rank=node, world=2, seed=3)
        batches = iter(stream)
        for _ in range(len(data) // 2):
            seen.extend(next(batches).keys)
        batches.close()
    assert len(set(seen)) == len(seen) == len(data) // 2 * 2
    kept = _cached_when_idle(proxy, tmp_path)
    # once for each cache that it is in: no node fetched a shard twice
    assert sum(_requests(proxy).values()) == sum(len(names) for names in kept)
    assert len(kept[0] | kept[1]) == len(shards)
    # a reader that is some batches ahead fetches two blocks of the next epoch too
    assert all(len(names) <= len(shards) // 2 + 1 + 4 for names in kept)


def _requests(proxy):
    return {name: count for name, count in proxy.fetched.items() if name.endswith(".tar")}


def _cached_when_idle(proxy, directory):
    """The shards in the caches of two nodes, once nothing more is fetched in the background."""
    deadline, before = time.monotonic() + 60, None
    while True:
        kept = [{path.stem for path in directory.glob(f"{node}/*/*.tar")} for node in range(2)]
        now = sum(_requests(proxy).values())
        if (now == before and now == sum(map(len, kept))) or time.monotonic() > deadline:
            return kept
        before = now
        time.sleep(0.2)


def test_a_killed_download_leaves_no_partial_shard(proxy, people, tmp_path):
    cache, shard = tmp_path / "c", read_manifest(people).shards[0]
    proxy.inject(shard.name, "stall", times=1)
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, people, str(cache)],
        env={**os.environ, **proxy.environment()},
    )
    deadline = time.monotonic() + 60
    while not proxy.fetched[f"tests/people/{shard.name}"] or not list(cache.glob("*/*.tar.*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    partial = list(cache.glob("*/*.tar.*"))
    assert len(partial) == 1
    assert partial[0].stat().st_size < shard.bytes
    assert list(cache.glob("*/*.tar")) == []
    # leftovers are deleted also when another shard is fetched first
    other = read_manifest(people).shards[1]
    ShardCache(cache).fetch(people, other)
    assert [path.name for path in cache.glob("*/*.tar*")] == [f"{other.sha256}.tar"]
    whole = ShardCache(cache).fetch(people, shard)
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == shard.sha256


def test_a_limited_cache_evicts_the_least_recently_used_shard(proxy, people, use_env, tmp_path):
    use_env(proxy.environment())
    shards = read_manifest(people).shards
    cache = ShardCache(tmp_path / "c", limit=sum(shard.bytes for shard in shards[:3]))
    for number in (0, 1, 0, 2, 3, 0):
        os.utime(cache.fetch(people, shards[number]), (time.time(), time.time()))
        time.sleep(0.02)
    kept = {path.stem for path in cache.directory.glob("*/*.tar")}
    assert shards[0].sha256 in kept
    assert shards[1].sha256 not in kept
    assert sum(path.stat().st_size for path in cache.directory.glob("*/*.tar")) <= cache.limit
    assert proxy.fetched[f"tests/people/{shards[0].name}"] == 1


def test_the_next_shards_are_fetched_while_one_block_is_read(proxy, people, use_env, tmp_path):
    use_env(proxy.environment())
    data = open_dataset(DataConfig(url=people, shuffle_block=2))
    stream = Stream(data, global_batch=2, rank=0, world=1, seed=0)
    next(stream.sample_refs())  # of the first batch; nothing is read yet
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "cache").glob("*/*.tar"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    assert sum(name.endswith(".tar") for name in proxy.fetched) == 4


def test_a_stalled_download_is_aborted_and_retried(proxy, people, use_env, tmp_path):
    use_env(proxy.environment())
    shard = read_manifest(people).shards[0]
    proxy.inject(shard.name, "stall", times=1)
    start = time.monotonic()
    cache = ShardCache(tmp_path / "c", timeout=1.0, retry_wait=0.1)
    assert cache.fetch(people, shard).stat().st_size == shard.bytes
    assert time.monotonic() - start < 8
    proxy.inject(read_manifest(people).shards[1].name, "stall")
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"{people}/.*tar: cannot be read \(no response for 1 s\)"):
        ShardCache(tmp_path / "c", timeout=1.0, retry_wait=0.1).fetch(
            people, read_manifest(people).shards[1]
        )
    assert time.monotonic() - start < 16
    assert [path.name for path in cache.directory.glob("*/*.tar*")] == [f"{shard.sha256}.tar"]


@pytest.mark.parametrize(("fault", "times"), [("503", 2), ("cut", 1)])
def test_transient_errors_are_retried(proxy, people, use_env, tmp_path, fault, times):
    use_env(proxy.environment())
    shard = read_manifest(people).shards[0]
    proxy.inject(shard.name, fault, times)
    cache = ShardCache(tmp_path / "c", retry_wait=0.1)
    assert cache.fetch(people, shard).stat().st_size == shard.bytes
