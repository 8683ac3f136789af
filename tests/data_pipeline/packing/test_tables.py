import fsspec
import pytest

from data_pipeline.packing.pack import PackOptions
from data_pipeline.packing.tables.table_source import Columns, open_table
from mezzotint.common.errors import UserError


def test_a_missing_column_is_named_with_its_option_and_the_others(images, packed):
    (images / "t.csv").write_text("file,caption\n0.png,a dog\n")
    for options, column in (
        (PackOptions(), r"'image'; it has file, caption; choose one by --image-column"),
        (
            PackOptions(image_column="file", attribute_columns=("label",)),
            r"'label'; it has file, caption; choose one by --attribute-columns",
        ),
    ):
        with pytest.raises(UserError, match=rf"t.csv: no column {column}"):
            packed(images / "t.csv", options)


def test_attributes_of_a_csv_table_are_integers_where_all_are(images, packed):
    (images / "t.csv").write_text(
        "image,caption,label,mixed,padded\n0.png,a,1,1,01\n1.png,b,-20,x,02\n2.png,c,,,\n"
    )
    found = packed(images / "t.csv", PackOptions(attribute_columns=("label", "mixed", "padded")))
    assert found.attributes == [
        {"label": 1, "mixed": "1", "padded": "01"},
        {"label": -20, "mixed": "x", "padded": "02"},
        {"label": None, "mixed": None, "padded": None},
    ]


def test_a_folder_of_tables_of_several_kinds_is_refused(images, packed):
    folder = images / "tables"
    folder.mkdir()
    (folder / "a.csv").write_text("image,caption\n../0.png,a\n")
    (folder / "a.jsonl").write_text('{"image":"../0.png","caption":"a"}\n')
    with pytest.raises(UserError, match=r"several kinds: a.csv \(CSV\), a.jsonl \(JSON Lines\)"):
        packed(folder)


def test_a_folder_of_text_tables_is_read(images, packed):
    folder = images / "tables"
    for split in ("train", "validation"):
        (folder / split).mkdir(parents=True)
        (folder / split / "0.csv").write_text(f"image,caption\n../../0.png,{split}\n\nx.png,x\n")
    found = packed(folder)
    assert found.captions == [["train"], ["validation"]]
    assert found.attributes == [{"split": "train"}, {"split": "validation"}]
    assert list(found.rejected) == ["train/0.csv: line 4: x.png", "validation/0.csv: line 4: x.png"]
    assert found.report.ignored["empty line"].examples == (
        "train/0.csv: line 3",
        "validation/0.csv: line 3",
    )


def test_columns_that_are_not_used_are_all_named(images, packed):
    names = [f"c{number}" for number in range(30)]
    row = ",".join(["0.png", "a dog", *names])
    (images / "t.csv").write_text(f"{','.join(['image', 'caption', *names])}\n{row}\n")
    report = packed(images / "t.csv").report
    assert report.ignored["column not used"].examples == tuple(names)
    with pytest.raises(UserError, match=r"it has image, caption, c0, .*, c17, \.\.\.; choose one"):
        packed(images / "t.csv", PackOptions(caption_column="text"))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.arrow"])
def test_a_table_in_a_store_is_read_with_the_images_beside_it(images, packed, name):
    rows = {"image": ["0.png", "nowhere.png"], "caption": ["a dog", "a cow"]}
    store = fsspec.filesystem("memory")
    store.pipe("/tables/data/0.png", (images / "0.png").read_bytes())
    with store.open(f"/tables/data/{name}", "wb") as file:
        if name == "t.csv":
            file.write(b"image,caption\n0.png,a dog\nnowhere.png,a cow\n")
        else:
            pa = pytest.importorskip("pyarrow")
            pq = pytest.importorskip("pyarrow.parquet")
            if name == "t.parquet":
                pq.write_table(pa.table(rows), file)
            else:
                with pa.ipc.new_stream(file, pa.table(rows).schema) as out:
                    out.write_table(pa.table(rows))
    found = packed(f"memory://tables/data/{name}")
    store.rm("/tables", recursive=True)
    assert found.captions == [["a dog"]]
    assert [fault for fault, _ in found.rejected.values()] == ["image missing"]


def test_a_table_beside_images_without_captions_is_named(images, packed):
    """A folder of images as hubs describe it, with metadata.csv or metadata.jsonl."""
    (images / "metadata.csv").write_text("file_name,text\n0.png,a dog\n1.png,a cow\n")
    with pytest.raises(UserError, match=r"the table metadata.csv: give .*/metadata.csv as"):
        packed(images)
    options = PackOptions(image_column="file_name", caption_column="text")
    assert packed(images / "metadata.csv", options).captions == [["a dog"], ["a cow"]]
    (images / "0.txt").write_text("a caption")
    assert packed(images).captions == [["a caption"]]


def test_a_table_without_rows_is_refused(images, packed):
    (images / "t.csv").write_text("image,caption\n\n")
    with pytest.raises(UserError, match=r"t.csv: the table has no rows"):
        packed(images / "t.csv")


def test_image_cells_that_are_no_files_cost_their_row(images, packed):
    cells = (
        *(".", "/dev/zero", "a::b", "x" * 5000, "file:///", "memory://x", "ftp://x/0.png"),
        *("s3://", "s3:// ", "s3://a", "s3://a::b/c", "gs://", "https://", "HTTP://", "http:///x"),
        *("http://[bad/0.png", "http://a b/0.png", "http://host:port/0.png", "http://☃☃.☃:0/x"),
    )
    text = "".join(f"{cell},x\n" for cell in cells)
    (images / "t.csv").write_text(f"image,caption\n 0.png,good\n{text}FILE://{images}/1.png,also\n")
    found = packed(images / "t.csv")
    assert found.captions == [["good"], ["also"]]
    assert len(found.rejected) == len(cells)


def test_the_identity_is_that_of_the_content(images):
    path = images / "t.csv"
    found = []
    for caption in ("a dog", "a cow", "a dog"):
        path.write_text(f"image,caption\n0.png,{caption}\n")
        found.append(open_table(str(path), Columns()).identity)
    assert found[0] == found[2] != found[1]
