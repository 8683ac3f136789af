"""`mezzotint data pack --hint-column`."""

import json

import pytest


def test_the_command_names_hints_and_their_columns(mezzotint, refused, png, tmp_path):
    for number in range(2):
        for name in (f"{number}.png", f"{number}.Depth.png"):
            (tmp_path / "photos").mkdir(exist_ok=True)
            (tmp_path / "photos" / name).write_bytes(png("red"))
        (tmp_path / "photos" / f"{number}.txt").write_text("a square")
    words = ["data", "pack", tmp_path / "photos", tmp_path / "out", "--hint-column"]
    report = json.loads(mezzotint(*words, "depth=Depth", "--json").out)
    assert report["samples"] == 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["members"] == {"depth.png": 2, "json": 2, "png": 2, "txt": 2}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("Depth",), "--hint-column Depth: a hint's name has small letters, digits and _ only"),
        (("a b=c",), "for instance --hint-column edges=c"),
        (("a=b", "a=c"), "--hint-column a=c: there are two columns of hint 'a'"),
    ],
)
def test_a_name_that_no_hint_can_have_is_refused(refused, tmp_path, columns, message):
    words = [word for column in columns for word in ("--hint-column", column)]
    assert message in refused("data", "pack", tmp_path / "x", tmp_path / "out", *words)
