"""`mezzotint data pack` and `inspect` say what is done to images and what looks wrong."""

import json
from pathlib import Path

import numpy as np
from image_files import ADOBE_RGB, encoded, rgb_icc
from PIL import Image

RNG = np.random.default_rng(0)


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(40, 200, (height, width, 3), dtype=np.uint8))


def test_images_are_described(mezzotint, tmp_path: Path):
    source, out = tmp_path / "photos", tmp_path / "set"
    source.mkdir()
    barred = Image.new("RGB", (60, 60), "white")
    barred.paste(photo(60, 30), (0, 15))
    turned = Image.Exif()
    turned[0x0112] = 8
    images = {
        "adobe.png": encoded(photo(30, 30), icc_profile=rgb_icc(ADOBE_RGB, 2.2)),
        "barred.png": encoded(barred),
        "broken.png": encoded(photo(30, 30), icc_profile=b"no profile"),
        "turned.jpg": encoded(photo(30, 30), "JPEG", exif=turned),
        "long.png": encoded(photo(400, 10)),
    }
    images |= {"again.png": images["barred.png"]}
    for name, content in images.items():
        (source / name).write_bytes(content)
        (source / name).with_suffix(".txt").write_text(f"{name} in words")
    packed = mezzotint("data", "pack", source, out).out
    assert "1 (converted to sRGB): adobe.png" in packed
    assert "1 (colour profile ignored): broken.png" in packed
    assert "1 (turned upright): turned.jpg" in packed
    text = mezzotint("data", "inspect", out).out
    assert "not in the manifest" not in text
    assert (
        "images (6 decoded): 30 x 30 to 400 x 10 pixels, at most 40 times as long as wide" in text
    )
    assert "  1 of 6: equal to another one" in text
    assert "  2 (33.3%): white bars: " in text
    assert "  1 (16.7%): a side below 16 pixels: " in text
    found = json.loads(mezzotint("data", "inspect", out, "--json").out)["images"]
    assert (found["decoded"], found["smallest"], found["largest"]) == (6, [30, 30], [400, 10])
    assert found["equal"] == 1
    assert found["noticed"]["white bars"]["count"] == 2
    assert "images (" not in mezzotint("data", "inspect", out, "--images", 0).out


def test_damaged_exif_gives_no_warning(mezzotint, tmp_path: Path):
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.jpg").write_bytes(encoded(photo(30, 30), "JPEG", exif=exif))
    (tmp_path / "photos" / "0.txt").write_text("noise")
    outcome = mezzotint("data", "pack", tmp_path / "photos", tmp_path / "set")
    assert "1 samples" in outcome.out
    assert "Warning" not in outcome.err


def test_what_a_split_shares_is_shown(mezzotint, write_set):
    url = write_set(changes={1: {"txt": b"Red SQUARE number 0"}})  # equal images in every third one
    text = mezzotint("data", "inspect", url).out
    expected = "of its test samples read, 6 have an image of a training sample, 1 a caption"
    assert expected in text
    overlap = json.loads(mezzotint("data", "inspect", url, "--json").out)["overlap"]
    assert overlap["halves"] == {"images": 6, "captions": 1}
