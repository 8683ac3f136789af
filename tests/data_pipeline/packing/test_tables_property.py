"""Tables of random rows: every row is a sample or is rejected by its number, whatever it holds."""

import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.packing.pack import PackOptions, pack
from mezzotint.common.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGES = (
    "0.png",
    "1.png",
    "missing.png",
    "",
    "http://[/x.png",
    "no\0file",
    "../..",
    "ftp://a/b.png",
)
texts = st.one_of(st.sampled_from(("a dog", "ein Käfer", "\U0001f600", "")), st.text(max_size=9))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just("\ud83d")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=2)),
    max_leaves=4,
)
rows = st.fixed_dictionaries(
    {"image": st.one_of(st.sampled_from(IMAGES), values), "caption": st.one_of(texts, values)},
    optional={"x": values, "unused": values},
)
GOOD = {"image": "0.png", "caption": "a good row", "x": 1}
few = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def check(folder: Path, name: str, content: bytes, count: int, empty: int = 0) -> None:
    """All rows and empty lines are accounted for, and the same command changes nothing."""
    (folder / name).write_bytes(content)
    with tempfile.TemporaryDirectory() as out:
        options = PackOptions(attribute_columns=("x",), workers=2, shard_size=3)
        try:
            report = pack(str(folder / name), out, options)
        except UserError as error:
            message = str(error)
            assert "Traceback" not in message
            assert len(message) < 1000
            rejected = Path(out, "rejected.jsonl")
            if rejected.exists():
                assert len(rejected.read_text().splitlines()) == count
            return
        assert report.manifest.sample_count + len(report.rejected) == count
        if empty:
            assert report.ignored["empty line"].count == empty
        again = pack(str(folder / name), out, options)
        assert again.manifest == report.manifest
        assert again.rejected == report.rejected


@few
@given(st.lists(rows, min_size=1, max_size=6), st.integers(0, 2))
def test_json_lines(images, objects, blank):
    lines = [json.dumps(row) for row in (GOOD, *objects)] + [" "] * blank
    check(images, "t.jsonl", "\n".join(lines).encode() + b"\n", len(objects) + 1, blank)


@few
@given(st.lists(rows, min_size=1, max_size=6))
def test_json_arrays(images, objects):
    check(images, "t.json", json.dumps([*objects, GOOD]).encode(), len(objects) + 1)


@few
@given(
    st.lists(st.one_of(st.binary(max_size=30), st.just(b'{"image":"0.png","caption":"a","x":1}')))
)
def test_any_bytes_as_lines(images, parts):
    content = b"\n".join(parts)
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    blank = sum(not line.strip(b" \t\r") for line in lines)
    check(images, "t.ndjson", content, len(lines) - blank)


cells = st.one_of(st.sampled_from(IMAGES), texts.filter(lambda text: "\ud83d" not in text))


@few
@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6))
def test_csv(images, table):
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows([GOOD, GOOD.values(), *table])
    check(images, "t.csv", file.getvalue().encode("utf-8", "replace"), len(table) + 1)


@few
@given(
    st.lists(st.sampled_from(IMAGES), min_size=5, max_size=5),
    st.sampled_from(
        [
            st.lists(st.one_of(texts.map(lambda text: text.replace("\ud83d", "")), st.none())),
            st.lists(st.one_of(st.floats(), st.none())),
            st.lists(st.one_of(st.booleans(), st.none())),
            st.lists(st.binary(max_size=5)),
            st.lists(st.lists(st.sampled_from(("a", "", None)), max_size=2)),
            st.lists(st.datetimes()),
        ]
    ),
    st.data(),
)
def test_parquet(images, paths, column, data):
    def draw():
        return (data.draw(column) + [None] * 5)[:5]

    table = pa.table({"image": paths, "caption": draw(), "x": draw()})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=2)
    check(images, "t.parquet", sink.getvalue(), 5)
