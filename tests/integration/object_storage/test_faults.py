"""Faults of an object store while shards are fetched, whole and in parts."""

import dataclasses
import hashlib
import logging
import time

import pytest
from object_store import SECRETS, TOKEN

from data_pipeline.cache import ShardCache
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.fetching import transfer
from mezzotint.common.errors import UserError

pytestmark = pytest.mark.s3

TRANSIENT = {
    "503": "fails or is overloaded (ServiceUnavailable)",
    "500": "fails or is overloaded (InternalError)",
    "cut": "cannot be read (",
    "stall": "cannot be read (no response for 0 s)",
    "hang": "cannot be read (no response for 0 s)",
}
REFUSED = {
    "403": "these credentials may not do this; ask the bucket's owner",
    "expired": "session token has expired; get new credentials and set AWS_SESSION_TOKEN",
}
"""Messages of faults that are tried again, and of others."""


@pytest.fixture(params=["whole", "in parts"])
def shard(request, monkeypatch, proxy, people, use_env, caplog):
    """A shard that is fetched whole or in parts, by a client that does not retry."""
    if request.param == "in parts":
        monkeypatch.setattr(transfer, "RANGED_BYTES", 0)
        monkeypatch.setattr(transfer, "PART_BYTES", 8192)
    use_env(proxy.environment(AWS_MAX_ATTEMPTS="1"))
    caplog.set_level(logging.DEBUG, logger="data_pipeline")
    return open_dataset(DataConfig(url=people)).manifest.shards[1]


def is_whole(path, shard):
    return hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256


def failed(cache, url, shard, caplog, capfd):
    """The message of a fetch that fails within a few seconds, and leaves no file and no secret."""
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        cache.fetch(url, shard)
    assert time.monotonic() - began < 20
    assert list(cache.directory.glob("*/*.tar*")) == []
    printed = f"{error.value}{caplog.text}{''.join(capfd.readouterr())}"
    assert not any(secret in printed for secret in SECRETS)
    return str(error.value)


@pytest.mark.parametrize("fault", TRANSIENT)
def test_a_fault_that_passes_is_survived_and_a_lasting_one_named(
    proxy, people, shard, tmp_path, fault, caplog, capfd
):
    cache = ShardCache(tmp_path / "c", timeout=1.0, retry_wait=0.01)
    proxy.inject(shard.name, fault, times=1)
    assert is_whole(cache.fetch(people, shard), shard)
    assert f"{people}/{shard.name}: cannot be read" in caplog.text
    assert "; trying again in 0.0 s" in caplog.text
    proxy.inject(shard.name, fault)
    waiting = ShardCache(tmp_path / "d", timeout=0.1, retry_wait=0.01)
    message = failed(waiting, people, shard, caplog, capfd)
    assert message.startswith(f"{people}/{shard.name}: cannot be read")
    assert fault == "cut" or TRANSIENT[fault] in message or "no response for 0 s" in message


@pytest.mark.parametrize("fault", REFUSED)
def test_a_refusal_is_named_at_once(proxy, people, shard, use_env, tmp_path, fault, caplog, capfd):
    use_env(proxy.environment(AWS_SESSION_TOKEN=TOKEN))
    proxy.inject("", fault)
    before = proxy.requests
    message = failed(ShardCache(tmp_path / "c"), people, shard, caplog, capfd)
    assert message.startswith(f"{people}/{shard.name}: cannot be read")
    assert REFUSED[fault] in message
    assert proxy.requests - before <= transfer.PARALLEL_PARTS
    assert "trying again" not in caplog.text


def test_a_missing_shard_is_named_at_once(proxy, people, shard, tmp_path, caplog, capfd):
    gone = dataclasses.replace(shard, name="gone.tar")
    message = failed(ShardCache(tmp_path / "c"), people, gone, caplog, capfd)
    assert message == f"{people}/gone.tar: no such file; copy it there again"
    assert "trying again" not in caplog.text


def test_no_attempt_begins_after_the_time_of_a_shard(proxy, people, shard, tmp_path, caplog, capfd):
    proxy.inject(shard.name, "503")
    impatient = ShardCache(tmp_path / "c", retry_wait=60, total=5)
    failed(impatient, people, shard, caplog, capfd)
    proxy.reset()
    proxy.inject(shard.name, "stall")
    limited = ShardCache(tmp_path / "c", timeout=60, total=0.3)
    assert "not complete after 0 s" in failed(limited, people, shard, caplog, capfd)


def test_parts_are_requests_of_their_own(proxy, people, shard, tmp_path):
    path = ShardCache(tmp_path / "c").fetch(people, shard)
    assert is_whole(path, shard)
    parts = -(-shard.bytes // transfer.PART_BYTES) if transfer.RANGED_BYTES == 0 else 1
    assert proxy.fetched[f"tests/people/{shard.name}"] == parts
