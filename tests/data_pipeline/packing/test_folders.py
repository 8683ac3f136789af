"""Folders of images as people keep them."""

import json
import os

import pytest

from data_pipeline.packing.options import PackOptions
from launch.data.pack import to_json, to_text
from mezzotint.common.errors import UserError


def test_lines_of_a_caption_file_are_several_captions_or_one(images, packed):
    (images / "0.txt").write_text("a red square\n\n  a square of red\r\nred, four equal sides\n")
    (images / "1.txt").write_text("one")
    found = packed(images)
    assert found.captions == [["a red square", "a square of red", "red, four equal sides"], ["one"]]
    assert found.report.noticed["several captions"].count == 1
    assert "noticed 1 (several captions): 0.png" in to_text(found.report)
    found = packed(images, PackOptions(caption_lines="one"))
    assert found.captions == [["a red square a square of red red, four equal sides"], ["one"]]
    assert "several captions" not in found.report.noticed
    found = packed(images, PackOptions(caption_lines="first"))
    assert found.captions == [["a red square"], ["one"]]
    assert found.report.noticed["all but the first caption left out"].count == 1


def test_a_caption_of_an_image_in_another_format_says_which(images, packed):
    (images / "0.txt").write_text("a red square")
    (images / "drawn.txt").write_text("a drawn square")
    (images / "drawn.svg").write_text("<svg/>")
    found = packed(images)
    assert ".svg is not read, convert it to PNG" in found.rejected["drawn.txt"][1]


def caption_all(images):
    for number in range(6):
        (images / f"{number}.txt").write_text(f"caption {number}")


def test_links_are_followed_and_hidden_and_system_files_are_left_out(images, packed, tmp_path):
    caption_all(images)
    (tmp_path / "elsewhere").mkdir()
    for suffix in (".png", ".txt"):
        os.rename(images / f"0{suffix}", tmp_path / "elsewhere" / f"0{suffix}")
    (images / "link").symlink_to(tmp_path / "elsewhere")
    (images / "link again").symlink_to(tmp_path / "elsewhere")
    (images / "loop").symlink_to(images)
    (images / "gone.png").symlink_to(tmp_path / "nowhere")
    (images / "gone.txt").write_text("its image is gone")
    for name in (".Trash-0/2.png", ".ipynb_checkpoints/3.txt", "__MACOSX/._1.png", "._1.png"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"x")
    for name in ("Thumbs.db", "@eaDir/1.png", "README.md"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"x")
    os.mkfifo(images / "pipe.png")
    found = packed(images)
    assert sorted(found.captions) == [[f"caption {number}"] for number in range(6)]
    assert found.rejected["gone.png"][0] == "image missing"
    assert found.ignored == {
        "hidden name": 4,
        "file of the system": 2,
        "link to a folder that is read already": 2,
        "neither file nor folder": 1,
        "unrelated file": 1,
    }
    assert found.report.noticed["read through a link"].examples == ("link/0.png",)
    text = to_text(found.report)
    assert "ignored 4 (hidden name): .Trash-0/2.png, ._1.png, ..." in text
    tree = json.loads(to_json(found.report))
    assert tree["ignored"]["unrelated file"] == {"count": 1, "examples": ["README.md"]}


def test_a_folder_of_images_and_tars_needs_a_choice(images, packed, tmp_path):
    caption_all(images)
    (images / "old.tar").write_bytes(b"whatever")
    with pytest.raises(UserError, match=r"6 images \(0.png, ...\) and 1 tars.*--read images or"):
        packed(images)
    found = packed(images, PackOptions(read="images"))
    assert (len(found.captions), found.ignored) == (6, {"tar beside the images": 1})
    with pytest.raises(UserError, match=r"old\.tar: "):
        packed(images, PackOptions(read="tars"))
    (images / "old.tar").unlink()
    with pytest.raises(UserError, match=r"no \.tar, .tar.gz or .tgz file in this folder"):
        packed(images, PackOptions(read="tars"))


def test_a_folder_of_hidden_files_alone_is_named(tmp_path, packed):
    (tmp_path / "x" / ".git").mkdir(parents=True)
    (tmp_path / "x" / ".git" / "config").write_text("")
    with pytest.raises(UserError, match=r"or an empty one \(1 files with hidden names"):
        packed(tmp_path / "x")


def test_caption_files_of_other_tools_are_read(images, packed):
    os.rename(images / "0.png", images / "0.PNG")
    (images / "0.TXT").write_text("upper case")
    (images / "1.caption").write_text("of a trainer")
    (images / "2.json").write_text(json.dumps({"caption": "of a downloader", "width": 6}))
    (images / "3.json").write_text(json.dumps({"caption": ["two", "texts"]}))
    (images / "4.json").write_text(json.dumps({"text": "elsewhere"}))
    (images / "5.txt").write_text("first")
    (images / "5.caption").write_text("second")
    (images / "5.json").write_text(json.dumps({"caption": "third"}))
    found = packed(images)
    assert found.captions == [
        ["upper case"],
        ["of a trainer"],
        ["of a downloader"],
        ["two", "texts"],
        ["first"],
    ]
    assert found.rejected == {"4.png": ("caption missing", "its .json has no text named caption")}
    assert found.ignored == {"file beside another caption file": 2}


def test_two_images_of_one_caption_file_are_noticed(images, packed):
    caption_all(images)
    (images / "3.v2.png").write_bytes((images / "3.png").read_bytes())
    (images / "3.v2.txt").write_text("a dot in a name")
    (images / "4.webp").write_bytes((images / "4.png").read_bytes())
    found = packed(images)
    assert [one[0] for one in found.captions][3:6] == ["caption 3", "a dot in a name", "caption 4"]
    assert found.report.noticed["the caption file of another image"].examples == ("4.webp",)


def test_names_of_any_form_are_packed_and_shown(images, packed):
    caption_all(images)
    odd = ["a::b", "line\nbreak", "ümläut", "hash#?*[1]", "~x", "sp ace", "%41"]
    for name in odd:
        (images / f"{name}.png").write_bytes((images / "1.png").read_bytes())
        (images / f"{name}.txt").write_text(f"named {name.encode()!r}")
    raw = os.fsdecode(b"\xff\xfe")
    (images / f"{raw}.png").write_bytes((images / "1.png").read_bytes())
    (images / f"{raw}.txt").write_text("not UTF-8")
    (images / f"{raw}2.png").write_bytes(b"broken")
    (images / f"{raw}.md").write_bytes(b"unrelated")
    found = packed(images)
    assert "ignored 1 (unrelated file): \\udcff\\udcfe.md" in to_text(found.report)
    assert to_json(found.report).encode()
    assert len(found.captions) == 6 + len(odd) + 1
    assert list(found.rejected) == ["\\udcff\\udcfe2.png"]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\xff\xfea\0", "caption unusable"),
        ("a cat".encode("utf-16-le"), "caption unusable"),
        (b"\xef\xbb\xbf\n \n", "caption missing"),
        (b"", "caption missing"),
    ],
)
def test_a_caption_file_without_text_is_one_rejected_pair(images, packed, content, fault):
    caption_all(images)
    (images / "3.txt").write_bytes(content)
    found = packed(images)
    assert len(found.captions) == 5
    assert found.rejected["3.png"][0] == fault


def test_the_folder_of_an_image_is_an_attribute_and_a_caption(images, packed):
    for number, name in enumerate(("cats", "dogs", "more/cats")):
        (images / name).mkdir(parents=True)
        os.rename(images / f"{number}.png", images / name / f"{number}.png")
    (images / "dogs" / "1.txt").write_text("a dog that somebody described")
    (images / "3.txt").write_text("at the top")
    found = packed(images, PackOptions(folder_attribute="label", folder_caption=True))
    assert sorted(
        zip((one[0] for one in found.captions), map(str, found.attributes), strict=True)
    ) == [
        ("a dog that somebody described", "{'label': 'dogs'}"),
        ("at the top", "{'label': None}"),
        ("cats", "{'label': 'cats'}"),
        ("cats", "{'label': 'cats'}"),
    ]
    assert set(found.rejected) == {"4.png", "5.png"}
    found = packed(images, PackOptions(folder_attribute="label"))
    assert len(found.captions) == 2


def test_tiny_and_elongated_images_are_counted_and_may_be_rejected(images, packed):
    from PIL import Image

    caption_all(images)
    for name, size in {"0": (1, 1), "1": (2000, 4), "2": (64, 48), "3": (300, 100)}.items():
        Image.new("RGB", size).save(images / f"{name}.png")
    found = packed(images)
    assert found.report.noticed["a side below 16 pixels"].count == 4
    assert found.report.noticed["more than 10 times as long as wide"].examples == ("1.png",)
    found = packed(images, PackOptions(min_size=4, max_aspect=2.5))
    assert {name: fault for name, (fault, _) in found.rejected.items()} == {
        "0.png": "image too small",
        "1.png": "image too elongated",
        "3.png": "image too elongated",
    }
    assert found.rejected["1.png"][1] == "2000 x 4 pixels, --max-aspect is 2.5"
