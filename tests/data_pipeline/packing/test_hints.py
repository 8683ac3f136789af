"""Hints of tables, folders and tars: images that stay unchanged beside those of their samples."""

import io
import json
import tarfile

import pytest
from PIL import Image

from data_pipeline.config import DataConfig, HintConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.packing.hints import split_hint
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from mezzotint.common.errors import UserError

EDGES = {"edges": "edges"}


def picture(level, size=(6, 6), mode="L"):
    content = io.BytesIO()
    Image.new(mode, size, level).save(content, "PNG")
    return content.getvalue()


def files_of(samples):
    """The files of samples 0 to `samples` - 1, with hints of level 10 x number."""
    found = {}
    for number in range(samples):
        found[f"{number}.png"] = picture("red", mode="RGB")
        found[f"{number}.txt"] = f"caption {number}".encode()
        found[f"{number}.edges.png"] = picture(10 * number)
    return found


def folder(root, files):
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


def tar(root, files):
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return root


def table(root, files):
    folder(root, files)
    rows = [
        {"image": f"{n}.png", "caption": f"caption {n}", "edges": f"{n}.edges.png"}
        for n in range(sum(name.endswith(".txt") for name in files))
    ]
    (root / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "t.jsonl"


def hint_levels(url, **settings):
    hint = HintConfig(name="edges", **settings)
    data = DataConfig(url=str(url), image=ImageConfig(size=6), hint=hint)
    hints = open_dataset(data).batch(range(len(open_dataset(data)))).hints
    assert hints.shape[1:] == (1, 6, 6)
    return sorted(round(level * 255) for level in hints.mean(dim=(1, 2, 3)).tolist())


@pytest.mark.parametrize("source", [folder, tar, table])
def test_hints_are_packed_with_their_images(tmp_path, source):
    root, out = source(tmp_path / "source", files_of(4)), tmp_path / "out"
    report = pack(str(root), str(out), PackOptions(hint_columns=EDGES))
    assert (report.manifest.sample_count, report.rejected) == (4, ())
    assert report.manifest.fields["edges.png"] == "image file of a hint, as it was"
    assert not any("edges" in one for found in report.ignored.values() for one in found.examples)
    assert hint_levels(out) == [0, 10, 20, 30]
    again = pack(str(root), str(out), PackOptions(hint_columns=EDGES))
    assert again.changes == {}


@pytest.mark.parametrize("source", [folder, table])
def test_a_hint_that_changed_is_packed_again(tmp_path, source):
    root, out = source(tmp_path / "source", files_of(3)), tmp_path / "out"
    options = PackOptions(hint_columns=EDGES)
    pack(str(root), str(out), options)
    (tmp_path / "source" / "1.edges.png").write_bytes(picture(200))
    again = pack(str(root), str(out), options)
    assert {what: one.count for what, one in again.changes.items()} == {"changed": 1}
    assert hint_levels(out) == [0, 20, 200]


@pytest.mark.parametrize("source", [folder, tar, table])
def test_a_sample_without_a_hint_of_its_proportions_is_rejected(tmp_path, source):
    files = files_of(5)
    files["1.edges.png"] = b"no image"
    files["2.edges.png"] = picture(9, size=(6, 12))
    files["3.edges.png"] = picture(9, size=(3, 3))
    del files["4.edges.png"]
    root = source(tmp_path / "source", files)
    found = pack(str(root), str(tmp_path / "out"), PackOptions(hint_columns=EDGES)).rejected
    faults = [(one.fault, one.detail) for one in found]
    assert [one[0] for one in faults] == ["hint unusable", "hint unusable", "hint missing"]
    assert "hint 'edges': not a PNG, JPEG or WebP file" in faults[0][1]
    assert "hint 'edges': 6 x 12 pixels, other proportions than those of the image" in faults[1][1]
    assert "'edges'" in faults[2][1]
    assert hint_levels(tmp_path / "out") == [0, 9]


def test_a_column_may_have_another_name_than_its_hint(tmp_path):
    files = {name.replace("edges", "Canny"): one for name, one in files_of(2).items()}
    root = folder(tmp_path / "source", files)
    pack(str(root), str(tmp_path / "out"), PackOptions(hint_columns={"edges": "Canny"}))
    assert hint_levels(tmp_path / "out") == [0, 10]


def test_a_hint_without_an_image_is_counted(tmp_path):
    root = folder(tmp_path / "source", {**files_of(2), "x.edges.png": picture(1)})
    report = pack(str(root), str(tmp_path / "out"), PackOptions(hint_columns=EDGES))
    assert report.ignored["hint without an image"].count == 1


def test_a_column_that_is_not_there_or_a_shard_set_is_refused(tmp_path):
    root = table(tmp_path / "source", files_of(2))
    with pytest.raises(UserError, match=r"no column 'depth'; it has .*choose one by --hint-column"):
        pack(str(root), str(tmp_path / "no"), PackOptions(hint_columns={"depth": "depth"}))
    pack(str(root), str(tmp_path / "out"), PackOptions(hint_columns=EDGES))
    with pytest.raises(UserError, match="hints are kept as they are; leave out --hint-column"):
        pack(str(tmp_path / "out"), str(tmp_path / "no"), PackOptions(hint_columns=EDGES))
    pack(str(tmp_path / "out"), str(tmp_path / "copy"), PackOptions())
    assert hint_levels(tmp_path / "copy") == [0, 10]


def test_the_files_of_hints():
    columns = {"edges": "Canny"}
    assert split_hint("a/b.Canny.PNG", columns) == ("a/b", "edges")
    for other in (
        "a/b.png",
        "a/b.canny.png",
        "a/.Canny.png",
        "b.Canny.txt",
        "b.Canny",
        "Canny.png",
    ):
        assert split_hint(other, columns) is None
