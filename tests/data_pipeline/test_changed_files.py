"""Files that changed after their digest was taken are noticed when they are opened."""

import json
import logging
import os
import shutil
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipeline.cache import node_cache
from data_pipeline.config import DataConfig, ImageConfig, TextConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.derive import derive, finished_set
from data_pipeline.digest_records import DigestRecords, FileState
from data_pipeline.index import index
from data_pipeline.indexing.options import IndexOptions
from data_pipeline.inspect import inspect
from data_pipeline.packing.pack import PackOptions, pack
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.sets.stored_set import read_contents, read_manifest
from data_pipeline.sets.write import write_contents
from data_pipeline.stream import Stream, StreamState
from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.verify import verify
from mezzotint.common.errors import UserError

CHANGED = r"squares-000001.tar: does not match its manifest .*copy it here again or, .*data index"


def rewrite(path, old, new):
    """Rewrite a file in place, with its size and time of modification."""
    status, content = os.stat(path), Path(path).read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    with open(path, "r+b") as file:
        file.write(content.replace(old, new))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(path).st_mtime_ns == status.st_mtime_ns


@pytest.fixture
def settled(monkeypatch):
    """States are recorded however young they are."""
    monkeypatch.setattr("data_pipeline.digest_records._SETTLED_SECONDS", 0.0)


@pytest.fixture
def spoiled(squares):
    """The squares, with another caption of the same length in the second shard."""
    open_dataset(DataConfig(url=squares)).captions()
    rewrite(f"{squares}/squares-000001.tar", b"green square 5", b"black square 5")
    return squares


@pytest.mark.usefixtures("settled")
def test_a_shard_that_was_rewritten_in_place_is_refused(spoiled, tmp_path):
    dataset = open_dataset(DataConfig(url=spoiled))
    assert dataset.caption(0) == "red square 0"
    with pytest.raises(UserError, match=CHANGED):
        dataset.caption(5)
    with pytest.raises(UserError, match=CHANGED):
        inspect(spoiled)
    with pytest.raises(UserError, match=CHANGED):
        pack(spoiled, str(tmp_path / "out"), PackOptions())
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.usefixtures("settled")
def test_a_shard_that_is_rewritten_while_in_use_is_refused(squares):
    dataset = open_dataset(DataConfig(url=squares))
    assert dataset.caption(5) == "green square 5"
    time.sleep(0.02)  # the clock of file times ticks every few milliseconds
    path = Path(squares, "squares-000001.tar")
    content = path.read_bytes().replace(b"green square 5", b"black square 5")
    with path.open("r+b") as file:
        file.write(content)
    with pytest.raises(UserError, match=CHANGED):
        dataset.caption(5)


def test_a_shard_that_was_only_touched_or_copied_is_read(squares, tmp_path):
    os.utime(f"{squares}/squares-000001.tar")
    os.chmod(f"{squares}/squares-000001.tar", 0o444)
    shutil.copytree(squares, tmp_path / "copy")
    for url in (squares, str(tmp_path / "copy")):
        assert open_dataset(DataConfig(url=url)).caption(5) == "green square 5"


def test_the_digest_of_a_file_is_computed_once_per_state(tmp_path, settled, monkeypatch):
    (tmp_path / "file").write_bytes(b"content")
    computed = []
    real = DigestRecords._compute
    monkeypatch.setattr(
        DigestRecords, "_compute", lambda self, file: computed.append(file) or real(self, file)
    )

    def digest():
        file = os.open(tmp_path / "file", os.O_RDONLY)
        try:
            return DigestRecords(tmp_path / "records").of(file)
        finally:
            os.close(file)

    first = digest()
    assert digest() == first
    assert len(computed) == 1
    rewrite(tmp_path / "file", b"content", b"CONTENT")
    assert digest() != first
    assert len(computed) == 2
    DigestRecords(tmp_path / "records").prepare(tmp_path / "file")
    assert len(computed) == 2
    assert not list((tmp_path / "records").glob("*/*.lock"))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("command", [index, verify])
def test_what_was_indexed_or_verified_is_not_read_again(squares, command, monkeypatch):
    command(squares)
    monkeypatch.setattr(DigestRecords, "_compute", lambda *_: pytest.fail("read again"))
    assert open_dataset(DataConfig(url=squares)).caption(5) == "green square 5"


def test_a_state_that_may_still_change_unnoticed_is_not_recorded(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    records = DigestRecords(tmp_path / "records")
    records.prepare(tmp_path / "file")
    assert records.find(FileState.of(os.stat(tmp_path / "file"))) is None


def test_without_a_place_for_records_every_shard_is_read(squares, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert len(open_dataset(DataConfig(url=squares)).captions()) == 23
    assert "set MEZZOTINT_CACHE or data.cache to a writable directory" in caplog.text
    assert len(caplog.records) == 1


def test_a_stream_prepares_the_digests_in_the_background(squares, cache, settled):
    open_dataset(DataConfig(url=squares)).prefetch([0, 3])
    until = time.monotonic() + 10
    while len([one for one in cache.glob("digests/*/*") if not one.suffix]) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("compress", [False, True])
def test_a_spoiled_copy_in_the_cache_is_fetched_again(make_set, cache, compress, caplog):
    system = fsspec.filesystem("memory")
    try:
        system.put(make_set(compress=compress), "/bucket/set", recursive=True)
        url = "memory://bucket/set"
        captions = open_dataset(DataConfig(url=url)).captions()
        shard = read_manifest(url).shards[1]
        copy = cache / shard.sha256[:2] / f"{shard.sha256}.tar"
        rewrite(copy, b"green square 5", b"black square 5")
        with caplog.at_level(logging.WARNING):
            assert open_dataset(DataConfig(url=url)).captions() == captions
        assert f"{copy}: this copy of '{shard.name}' is not as it was verified" in caplog.text
        rewrite(copy, b"green square 5", b"black square 5")
        system.rm(f"/bucket/set/{shard.name}")
        with pytest.raises(UserError, match=f"{shard.name}: no such file; copy it there again"):
            node_cache().fetch(url, shard)
    finally:
        system.rm("/bucket", recursive=True)


@pytest.mark.usefixtures("settled")
def test_a_compressed_shard_that_was_rewritten_is_refused_although_a_copy_is_there(make_set):
    url = make_set(compress=True)
    dataset = open_dataset(DataConfig(url=url))
    assert dataset.caption(5) == "green square 5"
    content = Path(url, "squares-000001.tar.gz").read_bytes()
    rewrite(f"{url}/squares-000001.tar.gz", content, content[:-1] + b"x")
    with pytest.raises(UserError, match=r"squares-000001.tar.gz: does not match its manifest"):
        open_dataset(DataConfig(url=url)).caption(5)


def test_an_expanded_copy_that_was_only_touched_is_not_fetched_again(make_set, cache, caplog):
    url = make_set(compress=True)
    captions = open_dataset(DataConfig(url=url)).captions()
    [os.utime(path) for path in cache.glob("*/*.tar")]
    inodes = [path.stat().st_ino for path in sorted(cache.glob("*/*.tar"))]
    assert open_dataset(DataConfig(url=url)).captions() == captions
    assert [path.stat().st_ino for path in sorted(cache.glob("*/*.tar"))] == inodes
    assert caplog.records == []


@pytest.mark.usefixtures("settled")
def test_a_finished_derived_set_is_checked_with_its_source(squares, tmp_path):
    source = open_dataset(DataConfig(url=squares, image=ImageConfig(size=4)))
    derived = str(tmp_path / "derived")
    derive(source, derived, codes(source), fields=("codes",), encoder="a" * 64)
    assert finished_set(source, derived, "a" * 64) is not None
    shard = f"{derived}/squares-codes-000001.tar"
    rewrite(shard, b"green square 5", b"black square 5")
    with pytest.raises(UserError, match=r"squares-codes-000001.tar: does not match its manifest"):
        finished_set(source, derived, "a" * 64)
    rewrite(shard, b"black square 5", b"green square 5")
    assert finished_set(source, derived, "a" * 64) is not None
    rewrite(f"{squares}/squares-000001.tar", b"green square 5", b"black square 5")
    with pytest.raises(UserError, match=CHANGED):
        finished_set(source, derived, "a" * 64)


def codes(dataset):
    return [{"codes": np.zeros((len(dataset), 2), np.int32)}]


def test_a_set_that_is_no_derived_one_is_not_replaced_by_one(squares):
    source = open_dataset(DataConfig(url=squares))
    before = Path(squares, "manifest.json").read_bytes()
    for write in (
        lambda: finished_set(source, squares, "a" * 64),
        lambda: derive(source, squares, codes(source), fields=("codes",), encoder="a" * 64),
    ):
        with pytest.raises(UserError, match="holds the set 'squares', which is no derived set; ch"):
            write()
    assert Path(squares, "manifest.json").read_bytes() == before


def test_a_set_that_is_derived_again_leaves_no_shard_of_the_old_one(squares, tmp_path):
    out = str(tmp_path / "derived")
    everything = open_dataset(DataConfig(url=squares))
    derive(everything, out, codes(everything), fields=("codes",), encoder="a" * 64)
    Path(squares, "squares-000004.tar").unlink()
    Path(squares, "squares-000003.tar").unlink()
    index(squares)  # corrected, and indexed again
    fewer = open_dataset(DataConfig(url=squares))
    assert finished_set(fewer, out, "a" * 64) is None
    derive(fewer, out, codes(fewer), fields=("codes",), encoder="a" * 64)
    report = verify(out)
    assert (report.problems, report.unlisted, report.manifest.sample_count) == ((), (), 15)


def test_sets_of_any_name_can_be_derived(squares, tmp_path):
    index(squares, IndexOptions(name="my photos/é"))
    source = open_dataset(DataConfig(url=squares))
    made = derive(source, str(tmp_path / "out"), codes(source), fields=("codes",), encoder="a" * 64)
    assert made.shards[0].name == "my_photos__-codes-000000.tar"
    assert verify(str(tmp_path / "out")).problems == ()


def test_a_run_does_not_go_on_with_another_tokenizer(squares, tokenizer_directory):
    text = TextConfig(tokenizer=tokenizer_directory, length=8)
    config = DataConfig(url=squares, text=text)
    first = Stream(open_dataset(config), global_batch=4, rank=0, world=1, seed=0)
    state = StreamState.from_json(json.loads(first.state_after(2).model_dump_json()))
    Stream(open_dataset(config), global_batch=4, rank=0, world=1, seed=0, state=state)
    other = Tokenizer.train(open_dataset(DataConfig(url=squares)).captions(), 60)
    Path(tokenizer_directory, "tokenizer.model").write_bytes(other)
    with pytest.raises(UserError, match=r"data.text.tokenizer: this run was started with .*put"):
        Stream(open_dataset(config), global_batch=4, rank=0, world=1, seed=0, state=state)
    earlier = {name: one for name, one in state.model_dump().items() if name != "tokenizer"}
    before = StreamState.from_json(earlier)  # as checkpoints of earlier versions have it
    Stream(open_dataset(config), global_batch=4, rank=0, world=1, seed=0, state=before)


def test_a_manifest_with_other_offsets_is_refused(squares):
    contents = read_contents(squares)
    one, two = contents.shards[1].samples[:2]
    one.members["txt"], two.members["txt"] = two.members["txt"], one.members["txt"]
    write_contents(squares, contents)
    dataset = open_dataset(DataConfig(url=squares))
    with pytest.raises(UserError, match=r"squares-000001.tar: '0005.txt' is not where the manif"):
        dataset.caption(5)


def test_a_manifest_with_another_size_of_a_member_is_refused(squares):
    contents = read_contents(squares)
    members = contents.shards[0].samples[0].members
    members["txt"] = (members["txt"][0], 3)
    write_contents(squares, contents)
    with pytest.raises(UserError, match=r"squares-000000.tar: '0000.txt' is not where"):
        open_dataset(DataConfig(url=squares)).caption(0)


def test_a_tar_that_no_manifest_lists_is_named(squares, caplog):
    shutil.copy(f"{squares}/squares-000000.tar", f"{squares}/later.tar")
    with caplog.at_level(logging.WARNING):
        assert len(open_dataset(DataConfig(url=squares))) == 23
        open_dataset(DataConfig(url=squares))
    [record] = caplog.records
    assert f"{squares}/later.tar: in the directory of the set but not in its" in record.message


def test_a_set_with_long_and_foreign_names_is_read(tmp_path):
    keys = ["a" * 140, "d" * 90 + "/" + "k" * 60, "café", "日本", "plain"]
    write_shards(
        [RawSample(key, {"txt": key[:5].encode()}) for key in keys],
        str(tmp_path / "names"),
        name="names",
        licence="CC0-1.0",
        provenance={},
        shard_size=5,
        fields={},
    )
    captions = open_dataset(DataConfig(url=str(tmp_path / "names"))).captions()
    assert captions == tuple(key[:5] for key in keys)
