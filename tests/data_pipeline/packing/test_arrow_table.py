import datetime
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.packing.pack import PackOptions
from data_pipeline.packing.tables.arrow_table import ArrowTable
from mezzotint.common.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".parquet":
            pq.write_table(table, path, row_group_size=2)
        case ".arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
                out.write_table(table, max_chunksize=2)
        case ".feather":
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with (
                pa.OSFile(str(path), "wb") as file,
                pa.ipc.new_file(file, table.schema, options=options) as out,
            ):
                out.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_images_are_in_the_cells(images, packed, suffix):
    content = (images / "0.png").read_bytes()
    table = pa.table(
        {
            "image": [
                {"bytes": content, "path": "x.png"},
                {"bytes": None, "path": "1.png"},
                {"bytes": None, "path": None},
                {"bytes": b"no image", "path": "y.png"},
                None,
                {"bytes": content, "path": None},
            ],
            "caption": ["a", "b", "c", "d", "e", None],
            "label": pa.array([3, 4, 5, 6, 7, 8], pa.int64()),
        }
    )
    found = packed(write(images / f"t{suffix}", table), PackOptions(attribute_columns=("label",)))
    assert found.captions == [["a"], ["b"]]
    assert found.attributes == [{"label": 3}, {"label": 4}]
    assert {name: fault for name, (fault, _) in found.rejected.items()} == {
        "row 3": "image missing",
        "row 4": "image unreadable",
        "row 5": "image missing",
        "row 6": "caption missing",
    }


def test_binary_cells_are_images_and_appear_in_no_report(images, packed):
    content = (images / "0.png").read_bytes()
    table = pa.table(
        {
            "jpg": [content, b"\x89PNG secret" * 99, None, b""],
            "caption": ["a", "b", "c", "d"],
            "more": [b"x"] * 4,
        }
    )
    found = packed(write(images / "t.parquet", table), PackOptions(image_column="jpg"))
    assert found.captions == [["a"]]
    assert len(found.rejected) == 3
    assert b"secret" not in found.lines
    assert found.report.ignored["column not used"].examples == ("more",)
    with pytest.raises(
        UserError, match=r"all 4 pairs were rejected; the first: row 1: its caption"
    ) as error:
        packed(images / "t.parquet", PackOptions(image_column="jpg", caption_column="more"))
    assert "binary data, not a text" in str(error.value)


def test_types_of_texts_and_attributes(images, packed):
    time = datetime.datetime(2026, 11, 30, 12, 0, 0, 123456)
    table = pa.table(
        {
            "image": pa.array(["0.png", "1.png"], pa.large_string()),
            "caption": pa.array(["a dog", "a cow"]).dictionary_encode(),
            "time": pa.array([time, None], pa.timestamp("ns")),
            "day": pa.array([time.date(), None]),
            "class": pa.array([2.0, float("nan")]),
            "small": pa.array([1, None], pa.uint8()),
            "sum": pa.array([Decimal(12), None], pa.decimal128(38, 0)),
            "word": pa.array(["x", None], pa.string_view()),
        }
    )
    attributes = ("time", "day", "class", "small", "sum", "word")
    path = write(images / "t.parquet", table)
    found = packed(path, PackOptions(attribute_columns=attributes))
    assert found.captions == [["a dog"], ["a cow"]]
    assert found.attributes == [
        {
            "time": "2026-11-30 12:00:00.123456000",
            "day": "2026-11-30",
            "class": 2,
            "small": 1,
            "sum": 12,
            "word": "x",
        },
        dict.fromkeys(attributes),
    ]
    with pytest.raises(UserError, match="its caption is a date or time, not a text"):
        packed(path, PackOptions(caption_column="time"))
    with pytest.raises(UserError, match="its caption is a number, not a text"):
        packed(path, PackOptions(caption_column="class"))


@pytest.mark.parametrize(
    ("values", "detail"),
    [
        ([0.5], "its 'x' is a number; an attribute is a text or an integer"),
        ([float("inf")], "its 'x' is a number that is not finite"),
        ([True], "its 'x' is true or false"),
        ([["a"]], "its 'x' is a list of 1"),
        ([{"a": 1}], "its 'x' is an object with the fields a;"),
        ([Decimal("0.5")], "its 'x' is a number;"),
        ([b"a"], "its 'x' is binary data"),
        (["a\0"], "its 'x' holds a NUL character"),
    ],
)
def test_other_attributes_cost_their_row(images, packed, values, detail):
    table = pa.table({"image": ["0.png"], "caption": ["a"], "x": values})
    path = write(images / "t.parquet", table)
    with pytest.raises(UserError, match="all 1 pairs were rejected") as error:
        packed(path, PackOptions(attribute_columns=("x",)))
    assert detail in str(error.value)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_captions_are_lists_or_in_structs(images, packed, suffix):
    table = pa.table(
        {
            "image": ["0.png", "1.png", "2.png"],
            "caption": [["a", "b"], [], None],
            "sentences": [
                [{"raw": "c", "id": 1}, {"raw": "d", "id": 2}],
                [{"raw": "e", "id": 3}],
                [],
            ],
            "meta": [{"text": {"en": "f"}}, {"text": {"en": "g"}}, {"text": None}],
        }
    )
    path = write(images / f"t{suffix}", table)
    assert packed(path).captions == [["a", "b"]]
    nested = packed(path, PackOptions(caption_column="sentences.raw"))
    assert nested.captions == [["c", "d"], ["e"]]
    assert packed(path, PackOptions(caption_column="meta.text.en")).captions == [["f"], ["g"]]
    with pytest.raises(UserError, match=r"no column 'meta.text.fr'; it has image, caption, sent"):
        packed(path, PackOptions(caption_column="meta.text.fr"))


def test_text_that_is_no_utf8_costs_its_row(images, packed):
    raw = pa.array([b"a dog", b"caf\xe9"])
    texts = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    table = pa.table({"image": ["0.png", "1.png"], "caption": texts})
    found = packed(write(images / "t.parquet", table))
    assert found.captions == [["a dog"]]
    assert found.rejected == {"row 2": ("row unreadable", "'caption' is no valid string")}


def test_a_folder_as_hubs_write_it(images, packed):
    content = (images / "0.png").read_bytes()
    for split, number, of in (("train", 0, 2), ("train", 1, 2), ("test", 0, 1)):
        names = [f"{split} {number} {row}" for row in range(3)]
        image = [{"bytes": content, "path": f"{name}.png"} for name in names]
        name = f"data/{split}-{number:05d}-of-{of:05d}.parquet"
        write(images / "hub" / name, pa.table({"image": image, "text": names}))
    for name in ("README.md", "dataset_infos.json", ".gitattributes", ".cache/x.parquet"):
        path = images / "hub" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no table")
    found = packed(images / "hub", PackOptions(caption_column="text", shard_size=2, workers=4))
    expected = [("test", 0), ("train", 0), ("train", 1)]
    assert found.captions == [[f"{s} {n} {row}"] for s, n in expected for row in range(3)]
    assert [one["split"] for one in found.attributes] == ["test"] * 3 + ["train"] * 6
    assert found.ignored == {"hidden name": 2, "file beside the tables": 2}
    assert found.rejected == {}


def test_a_folder_saved_by_the_datasets_library(images, packed):
    content = (images / "0.png").read_bytes()
    for split in ("train", "test"):
        for number in range(2):
            image = [{"bytes": content, "path": None}]
            table = pa.table({"image": image, "caption": [f"{split} {number}"]})
            write(images / "saved" / split / f"data-{number:05d}-of-00002.arrow", table)
        for name in ("dataset_info.json", "state.json"):
            (images / "saved" / split / name).write_text(json.dumps({"_data_files": []}))
    found = packed(images / "saved")
    assert found.captions == [["test 0"], ["test 1"], ["train 0"], ["train 1"]]
    assert [one["split"] for one in found.attributes] == ["test", "test", "train", "train"]
    assert found.ignored == {"file beside the tables": 4}
    one = packed(images / "saved" / "train")
    assert (one.captions, one.attributes) == ([["train 0"], ["train 1"]], [{}, {}])


def test_what_downloads_of_web_images_write_is_read(images, packed):
    """Images in Parquet, with the status of every row, as img2dataset writes them."""
    content = (images / "0.png").read_bytes()
    table = pa.table(
        {
            "url": ["http://a/0.png", "http://a/1.png"],
            "key": ["000000000", "000000001"],
            "status": ["success", "failed_to_download"],
            "error_message": [None, "HTTP Error 404: Not Found"],
            "caption": ["a dog", "a cow"],
            "jpg": [content, None],
        }
    )
    write(images / "web" / "00000.parquet", table)
    (images / "web" / "00000_stats.json").write_text("{}")
    options = PackOptions(image_column="jpg", attribute_columns=("url", "key"))
    found = packed(images / "web", options)
    assert found.captions == [["a dog"]]
    assert found.attributes == [{"url": "http://a/0.png", "key": "000000000"}]
    assert found.rejected == {"row 2": ("image missing", "its image cell is empty")}


def test_a_folder_with_the_name_of_a_table_is_a_folder(images, packed):
    table = pa.table({"image": [(images / "0.png").read_bytes()], "caption": ["a dog"]})
    write(images / "t.parquet" / "part-00000-c000.snappy.parquet", table)
    (images / "t.parquet" / "_SUCCESS").touch()
    assert packed(images / "t.parquet").captions == [["a dog"]]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("content", [b"", b"no table", None])
def test_a_damaged_file_is_refused(images, packed, suffix, content):
    table = pa.table({"image": ["0.png"] * 100, "caption": [str(one) for one in range(100)]})
    path = write(images / f"t{suffix}", table)
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(UserError, match=rf"t\{suffix}: not a readable table"):
        packed(path)


@pytest.mark.parametrize("suffix", [".arrow", ".feather"])
def test_offsets_outside_of_the_data_are_not_followed(images, packed, suffix):
    # a text that ends in the padding of the data, and one that is missing
    offsets = pa.py_buffer(np.array([0, 5, 3], np.int32).tobytes())
    texts = pa.Array.from_buffers(
        pa.string(), 2, [pa.py_buffer(b"\1"), offsets, pa.py_buffer(b"abc")]
    )
    table = pa.table({"image": ["0.png", "1.png"], "caption": texts})
    with pytest.raises(UserError, match=rf"t\{suffix}: not a readable table"):
        packed(write(images / f"t{suffix}", table))


def test_columns_of_the_same_name_are_refused(images, packed):
    table = pa.table([["0.png"], ["a"], ["b"]], names=["image", "caption", "caption"])
    with pytest.raises(UserError, match=r"several columns have the name 'caption'"):
        packed(write(images / "t.parquet", table))


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_rows_are_read_in_any_order(tmp_path, suffix):
    table = pa.table({"image": [f"{row}.png" for row in range(700)], "n": range(700)})
    path = tmp_path / f"t{suffix}"
    if suffix == ".parquet":
        pq.write_table(table, path, row_group_size=150)
    else:
        write(path, table)
    rows = ArrowTable(str(path), ("image", "n"), "image")
    assert len(rows) == 700
    for row in (0, 1, 699, 5, 300, 299, 298, 150, 149, 0):
        assert rows.cells(row) == {"image": f"{row}.png", "n": row}
    rows.close()
    assert rows.cells(7)["n"] == 7
    rows.close()


def test_only_the_columns_that_are_used_are_read_in_batches(tmp_path):
    image = [{"bytes": bytes(100_000), "path": f"{row}.png"} for row in range(400)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": image, "caption": ["a"] * 400}), path, compression="none")
    for column, most in (("image.path", 1e6), ("image", 30e6)):
        before = pa.total_allocated_bytes()
        rows = ArrowTable(str(path), (column, "caption"), column)
        used = 0
        for row in range(400):
            rows.cells(row)
            used = max(used, pa.total_allocated_bytes() - before)
        rows.close()
        assert used < most
