"""The index of a shard, and manifests of both formats."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data_pipeline.sets.stored_set
from data_pipeline.config import DataConfig, LabelConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.index import index
from data_pipeline.indexing.options import IndexOptions
from data_pipeline.manifest import INDEX_SUFFIX, SampleEntry
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.selection import select
from data_pipeline.sets.bounded_cache import BoundedCache
from data_pipeline.sets.shard_index import ShardIndex
from data_pipeline.sets.stored_set import read_contents, read_manifest, read_set
from data_pipeline.sets.survey import Survey
from data_pipeline.sets.write import write_contents
from data_pipeline.stream import Stream
from data_pipeline.verify import verify
from mezzotint.common.errors import UserError

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=6)
POSITION = st.tuples(st.integers(0, 1 << 40), st.integers(0, 1 << 33))
SAMPLES = st.lists(
    st.builds(
        SampleEntry,
        key=TEXT,
        members=st.dictionaries(TEXT, POSITION, max_size=3),
        attributes=st.dictionaries(
            TEXT, st.one_of(st.none(), st.integers(), TEXT, st.just("5"), st.just(5)), max_size=3
        ),
    ),
    max_size=8,
)
PARTS = st.sampled_from((None, "train", "test"))


@given(SAMPLES, st.data())
def test_an_index_gives_back_what_it_was_made_of(samples, data):
    parts = data.draw(st.lists(PARTS, min_size=len(samples), max_size=len(samples)))
    made = ShardIndex.of(samples, {"split": parts})
    content = made.to_bytes()
    found = ShardIndex.from_bytes(content, "x")
    assert content == ShardIndex.of(samples, {"split": parts}).to_bytes()
    assert found.samples() == samples
    assert [found.part("split", row) for row in range(len(samples))] == parts
    for name in {name for one in samples for name in one.attributes}:
        values = [one.attributes.get(name) for one in samples]
        assert found.counts(name) == {
            value: sum(type(value) is type(one) and value == one for one in values)
            for value in values
            if value is not None
        }
        assert found.among(name, [5]).tolist() == [
            isinstance(one, int) and one == 5 for one in values
        ]
    for extension in {name for one in samples for name in one.members} | {"none"}:
        assert found.has(extension).tolist() == [extension in one.members for one in samples]


@pytest.mark.parametrize("content", [b"", b"PK", b"[1]"])
def test_what_is_no_index_is_named(content):
    with pytest.raises(UserError, match=r"a\.npz: not the index of a shard"):
        ShardIndex.from_bytes(content, "a.npz")


def test_every_changed_byte_of_an_index_is_noticed(squares):
    shard = read_manifest(squares).shards[1]
    path = Path(squares, shard.index_name)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(0, len(content), 200).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        dataset = open_dataset(DataConfig(url=squares))
        with pytest.raises(UserError, match=r"index\.npz: does not match its manifest; copy it"):
            dataset.caption(7)
        assert dataset.caption(12) == "red square 12"
    assert "index.npz: does not match" in "".join(verify(squares).problems)
    path.unlink()
    with pytest.raises(UserError, match=r"index\.npz: no such file: the index of shard 'squares-"):
        open_dataset(DataConfig(url=squares)).caption(7)


def as_format_1(url: str) -> None:
    """Write the manifest of a set as earlier versions did."""
    contents = read_contents(url).model_copy(update={"format_1_fingerprint": None})
    Path(url, "manifest.json").write_text(contents.model_dump_json(exclude_none=True))
    for path in Path(url).glob(f"*{INDEX_SUFFIX}"):
        path.unlink()


CONFIGS = (
    {},
    {"select": (Selection(split="halves", part="test"),)},
    {"select": (Selection(split="all", part="train", where={"shade": ("red", "dark")}),)},
)


@pytest.mark.parametrize("more", CONFIGS)
def test_a_set_of_format_1_is_the_same_before_and_after_it_is_indexed_again(squares, more):
    as_format_1(squares)
    config = DataConfig(url=squares, **more)
    before = open_dataset(config)
    state = Stream(before, global_batch=2, rank=0, world=1, seed=0).state_after(3)
    report = index(squares)
    assert len(report.changes) == 1
    assert "listed every sample (format 1)" in report.changes[0]
    assert index(squares).changes == ()
    after = open_dataset(config)
    assert (after.keys(), after.captions()) == (before.keys(), before.captions())
    assert [after.entry(n) for n in range(len(after))] == [
        before.entry(n) for n in range(len(before))
    ]
    assert after.manifest.fingerprint == before.manifest.fingerprint
    stream = Stream(after, global_batch=2, rank=0, world=1, seed=0, state=state)
    assert next(stream.sample_refs())


def test_a_set_that_is_open_is_read_on_while_it_is_indexed_again(squares):
    opened = open_dataset(DataConfig(url=squares))
    names = []
    for licence in ("MIT", "CC0-1.0", "other"):
        contents = read_contents(squares)
        for shard in contents.shards:
            for one in shard.samples:
                one.attributes["licence"] = licence
        write_contents(squares, contents)
        names.append({path.name for path in Path(squares).glob(f"*{INDEX_SUFFIX}")})
        if licence == "MIT":
            assert opened.caption(7) == "dark square 7"  # its index is read now
    assert [len(one) for one in names] == [10, 10, 10]
    assert verify(squares).unlisted == ()
    with pytest.raises(UserError, match=r"index\.npz: no such file"):
        opened.caption(22)


def test_a_change_ends_the_fingerprint_of_format_1(squares):
    as_format_1(squares)
    before = read_manifest(squares).fingerprint
    report = index(squares, IndexOptions(licence="MIT"))
    assert report.manifest.format_1_fingerprint is None
    assert report.manifest.fingerprint != before


def test_tars_that_one_may_only_read_are_indexed_elsewhere(squares, tmp_path):
    for path in Path(squares).iterdir():
        if path.suffix != ".tar":
            path.unlink()
        else:
            path.chmod(0o444)
    out = tmp_path / "indexes"
    before = sorted(Path(squares).iterdir())
    report = index(squares, IndexOptions(out=str(out)))
    assert sorted(Path(squares).iterdir()) == before
    assert report.manifest.location == squares
    dataset = open_dataset(DataConfig(url=str(out)))
    assert dataset.caption(22) == "blue square 22"
    assert verify(str(out)).problems == ()
    assert index(squares, IndexOptions(out=str(out))).changes == ()


def test_an_index_elsewhere_has_what_the_manifest_beside_the_tars_knows(squares, tmp_path):
    before = {path.name: path.read_bytes() for path in Path(squares).iterdir()}
    report = index(squares, IndexOptions(out=str(tmp_path / "out")))
    assert report.changes == ()
    assert read_contents(str(tmp_path / "out")).splits == read_contents(squares).splits
    Path(squares, "manifest.json").write_text('{"name": "kept", "format": 2}')
    report = index(squares, IndexOptions(out=str(tmp_path / "third")))
    assert f"a copy is {tmp_path}/third/manifest.json.old" in report.notes[0]
    assert report.manifest.name == "kept"
    assert {path.name for path in Path(squares).iterdir()} == before.keys()


def test_indexes_are_read_where_they_are_needed(squares, monkeypatch):
    read = []
    real = data_pipeline.sets.stored_set.storage.read_bytes
    monkeypatch.setattr(
        data_pipeline.sets.stored_set.storage,
        "read_bytes",
        lambda path: read.append(Path(path).name) or real(path),
    )
    dataset = open_dataset(
        DataConfig(url=squares, select=(Selection(split="halves", part="test"),))
    )
    assert read == ["manifest.json"]
    dataset.caption(0)
    dataset.caption(1)
    assert [name.partition(".")[0] for name in read[1:]] == ["squares-000000"]


def test_counts_of_a_selection_are_kept_on_the_node(squares, tmp_path, monkeypatch):
    selections = (Selection(split="all", part="train", where={"shade": ("red",)}),)
    sizes = select(Survey(read_set(squares), tmp_path), selections).sizes
    assert sizes.tolist() == [2, 1, 1, 1, 1]
    stored = read_set(squares)
    monkeypatch.setattr(stored.indexes, "of", None)
    assert select(Survey(stored, tmp_path), selections).sizes.tolist() == sizes.tolist()
    other = (Selection(split="all", part="train", where={"shade": ("dark",)}),)
    with pytest.raises(TypeError):
        select(Survey(stored, tmp_path), other)


def test_attributes_with_many_values_are_selected_without_a_list(tmp_path):
    url = str(tmp_path / "many")
    write_shards(
        (
            RawSample(f"{n:04d}", {"txt": b"x"}, {"url": f"u{n}", "kind": n % 2}, {"all": "train"})
            for n in range(1500)
        ),
        url,
        name="many",
        licence="none",
        provenance={},
        shard_size=500,
        fields={"txt": "captions"},
        splits={"all": "everything"},
    )
    counts = read_manifest(url).attributes
    assert (counts["url"].samples, counts["url"].values) == (1500, None)
    assert counts["kind"].values == ((0, 750), (1, 750))
    one = Selection(split="all", part="train", where={"url": ("u700",)})
    assert open_dataset(DataConfig(url=url, select=(one,))).keys() == ("0700",)
    none = Selection(split="all", part="train", where={"url": ("nowhere",)})
    with pytest.raises(UserError, match="selects no sample of 'many'"):
        open_dataset(DataConfig(url=url, select=(none,)))
    with pytest.raises(UserError, match="sample '0000' has url 'u0', which is no class"):
        open_dataset(DataConfig(url=url, label=LabelConfig(attribute="url", values=("u1",))))


def test_sets_are_joined_by_number_or_by_key(squares, tmp_path, make_set):
    same = str(tmp_path / "same")
    shutil.copytree(squares, same)
    fewer = make_set("fewer", samples=20, shard_size=3)
    for url, by_number in ((same, True), (fewer, False)):
        dataset = (
            open_dataset(
                DataConfig(
                    url=squares,
                    join=(url,),
                    select=(Selection(split="all", part="train", where={"shade": ("red",)}),),
                )
            )
            if by_number
            else open_dataset(DataConfig(url=fewer, join=(squares,)))
        )
        [joined] = dataset._joined
        assert (joined._places is None) == by_number
        for number in (0, len(dataset) - 1):
            shard, row = dataset._selected.locate(number)
            assert joined.find(shard, row, dataset.entry(number).key).entry.key == (
                dataset.entry(number).key
            )


def test_a_joined_set_in_another_order_is_refused_where_it_differs(squares, tmp_path):
    other = str(tmp_path / "other")
    shutil.copytree(squares, other)
    contents = read_contents(other)
    samples = list(contents.shards[1].samples)
    samples[1], samples[2] = samples[2], samples[1]
    shard = contents.shards[1].model_copy(update={"samples": tuple(samples)})
    write_contents(
        other,
        contents.model_copy(update={"shards": (contents.shards[0], shard, *contents.shards[2:])}),
    )
    dataset = open_dataset(DataConfig(url=squares, join=(other,)))
    assert dataset.caption(5) == "green square 5"
    with pytest.raises(
        UserError, match=r"data.join: .* has sample '0007' where data.url has '0006'"
    ):
        dataset.entry(6)


def test_a_bounded_cache_drops_what_was_used_longest_ago():
    made = []
    cache = BoundedCache(10, len)
    for number in (1, 2, 1, 3, 1, 2):
        assert cache.get(number, lambda n: made.append(n) or "x" * 4) == "xxxx"
    assert made == [1, 2, 3, 2]


def test_a_manifest_without_a_column_is_refused(squares):
    path = Path(squares, "manifest.json")
    tree = json.loads(path.read_text())
    tree["shard_columns"]["bytes"].pop()
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match="a column has 4 of 5 shards; index the set again"):
        open_dataset(DataConfig(url=squares))
