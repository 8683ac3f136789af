"""Every damage to a shard is noticed, and the rest of the set is read as it is."""

import os
from pathlib import Path

import fsspec
import pytest
from mutations import mutations

from data_pipeline.cache import ShardCache
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.digest_records import FileState
from mezzotint.common.errors import UserError

DAMAGED = range(5, 10)
"""The samples of the second shard."""


def read(dataset, index):
    return tuple(dataset.member(index, name) for name in ("png", "txt", "json"))


@pytest.mark.parametrize("place", ["local", "remote"])
def test_200_mutations_of_a_shard_are_noticed_and_the_rest_is_exact(place, request):
    url = request.getfixturevalue("squares" if place == "local" else "remote")
    dataset = open_dataset(DataConfig(url=url))
    dataset.reader.cache.retry_wait = 0.0
    whole = [read(dataset, index) for index in range(len(dataset))]
    shard = dataset.manifest.shards[1]
    copy = dataset.reader.cache.directory / shard.sha256[:2] / f"{shard.sha256}.tar"
    system, path = fsspec.core.url_to_fs(f"{url}/{shard.name}")
    content = system.cat_file(path)
    for kind, changed in mutations(content, 200):
        dataset.reader.close()
        copy.unlink(missing_ok=True)
        system.pipe_file(path, changed)
        for index in range(len(dataset)):
            if index not in DAMAGED:
                assert read(dataset, index) == whole[index], kind
        with pytest.raises(UserError, match=f"{shard.name}: does not match its manifest"):
            read(dataset, DAMAGED[0])
        if len(changed) != len(content):
            with pytest.raises(UserError, match=f"{shard.name}: does not match its manifest"):
                open_dataset(DataConfig(url=url))
    system.pipe_file(path, content)
    assert [read(dataset, index) for index in range(len(dataset))] == whole


def test_a_copy_that_was_kept_is_read_once_more_by_a_later_process(remote, tmp_path, caplog):
    """Also where its state does not show what the disk lost."""
    shard = open_dataset(DataConfig(url=remote)).manifest.shards[0]
    first = ShardCache(tmp_path / "c")
    copy = first.fetch(remote, shard)
    content = copy.read_bytes()
    copy.write_bytes(content[:700] + bytes([content[700] ^ 1]) + content[701:])
    first.records.keep(FileState.of(copy.stat()), shard.sha256)
    assert ShardCache(tmp_path / "c").fetch(remote, shard).read_bytes() != content
    for record in Path(first.directory, "digests").glob("*/*"):
        os.utime(record, (0, 0))  # of an earlier process
    assert ShardCache(tmp_path / "c").fetch(remote, shard).read_bytes() == content
    assert "is not as it was verified; it is fetched again" in caplog.text
