from pathlib import Path

import numpy as np
from image_files import ADOBE_RGB, cmyk_icc, encoded, grey_icc, rgb_icc
from PIL import Image

from data_pipeline.images import ImageNote
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack

RNG = np.random.default_rng(0)


def image(mode: str = "RGB") -> Image.Image:
    channels = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    levels = RNG.integers(0, 256, (20, 20, channels), dtype=np.uint8)
    return Image.frombytes(mode, (20, 20), levels.tobytes())


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_what_is_done_to_images_is_counted_and_kept(tmp_path: Path):
    files = {
        "plain.png": encoded(image()),
        "upright.jpg": encoded(image(), "JPEG", exif=exif(1)),
        "adobe.png": encoded(image(), icc_profile=rgb_icc(ADOBE_RGB, 2.2)),
        "adobe.jpg": encoded(image(), "JPEG", icc_profile=rgb_icc(ADOBE_RGB, 2.2)),
        "print.jpg": encoded(image("CMYK"), "JPEG", icc_profile=cmyk_icc()),
        "ink.jpg": encoded(image("CMYK"), "JPEG"),
        "broken.png": encoded(image(), icc_profile=b"no profile"),
        "other.webp": encoded(image(), "WEBP", icc_profile=grey_icc(2.2)),
        "turned.jpg": encoded(image(), "JPEG", exif=exif(6)),
        "clear.png": encoded(image("RGBA")),
        "moving.webp": encoded(image(), "WEBP", save_all=True, append_images=[image()]),
    }
    source, out = tmp_path / "photos", tmp_path / "set"
    source.mkdir()
    for number, (name, content) in enumerate(files.items()):
        stem, _, extension = name.partition(".")
        (source / f"{stem}-{number}.{extension}").write_bytes(content)
        (source / f"{stem}-{number}.txt").write_text(f"image {number}")
    report = pack(str(source), str(out), PackOptions())
    assert report.manifest.sample_count == len(files)
    found = {rule: one.count for rule, one in report.noticed.items() if rule in set(ImageNote)}
    assert found == {
        ImageNote.CONVERTED: 3,
        ImageNote.CMYK: 1,
        ImageNote.PROFILE_IGNORED: 2,
        ImageNote.UPRIGHT: 1,
        ImageNote.ON_WHITE: 1,
        ImageNote.FIRST_FRAME: 1,
    }
    assert report.noticed[ImageNote.FIRST_FRAME].examples == ("moving-10.webp",)
    assert pack(str(source), str(out), PackOptions()).noticed == report.noticed
