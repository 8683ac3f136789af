"""Tars of shards are those of webdataset's writer."""

import io

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.packing.shard_writer import RawSample
from data_pipeline.sets import tar_writer
from data_pipeline.sets.tar_writer import write_tar
from data_pipeline.tar import index_tar
from mezzotint.common.digests import sha256, sha256_file


def by_webdataset(samples):
    file = io.BytesIO()
    with webdataset.TarWriter(file, mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write({"__key__": sample.key, **sample.members})
    return file.getvalue()


NAMES = st.text("abcXYZ019_-/", min_size=1, max_size=40).filter(
    lambda name: not name.endswith("/") and "//" not in name and not name.startswith("/")
)
SAMPLES = st.lists(
    st.builds(
        RawSample,
        NAMES,
        st.dictionaries(
            st.sampled_from(("png", "txt", "codes.npy", "json")),
            st.binary(max_size=1600),
            min_size=1,
        ),
    ),
    min_size=1,
    max_size=7,
    unique_by=lambda sample: sample.key,
)


@given(SAMPLES)
def test_the_bytes_are_those_of_webdataset(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    entries, digest = write_tar(samples, path, "x.tar")
    assert path.read_bytes() == by_webdataset(samples)
    assert digest == sha256(path.read_bytes())
    assert [(one.key, one.members) for one in entries] == [
        (one.key, one.members) for one in index_tar(path, "x.tar").samples
    ]


@pytest.mark.parametrize("key", ["é", "a" * 120, "a" * 97])
def test_other_names_are_written_by_webdataset(tmp_path, monkeypatch, key):
    called, real = [], tar_writer._write_by_webdataset
    monkeypatch.setattr(
        tar_writer,
        "_write_by_webdataset",
        lambda *arguments: called.append(1) or real(*arguments),
    )
    samples = [RawSample(key, {"txt": b"x", "json": b"{}"}, {"number": 1})]
    entries, digest = write_tar(samples, tmp_path / "x.tar", "x.tar")
    assert called == [1]
    assert (entries[0].key, entries[0].attributes) == (key, {"number": 1})
    assert digest == sha256_file(tmp_path / "x.tar")
