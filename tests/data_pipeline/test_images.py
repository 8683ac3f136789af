import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipeline.config import ImageConfig
from data_pipeline.images import decode, extension_of
from mezzotint.common.errors import UserError


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format_, **options)
    return content.getvalue()


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 2), (10, 20, 30, 255))
    image.putpixel((2, 2), (0, 0, 0, 51))  # a fifth of black
    array = decode(encoded(image), ImageConfig(size=4), "x")
    assert array[0, 0].tolist() == [255, 255, 255]
    assert array[2, 1].tolist() == [10, 20, 30]
    assert array[2, 2].tolist() == [204, 204, 204]


def test_transparent_palette_colours_become_white():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 0, 0, 255])
    image.putdata([0, 1])
    array = decode(encoded(image, transparency=0), ImageConfig(size=2), "x")
    assert array.shape == (2, 2, 3)
    assert array[0].tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb_bytes(mode):
    format_ = "JPEG" if mode == "CMYK" else "PNG"
    array = decode(encoded(Image.new(mode, (5, 3)), format_), ImageConfig(size=4), "x")
    assert array.shape == (4, 4, 3)
    assert array.dtype == np.uint8


def test_sixteen_bit_grey_keeps_its_brightness():
    image = Image.fromarray(np.full((2, 2), 0x8000, np.uint16))
    assert decode(encoded(image), ImageConfig(size=2), "x")[0, 0].tolist() == [128, 128, 128]


def test_pad_keeps_the_whole_image_and_crop_its_centre():
    content = encoded(Image.new("RGB", (4, 2), "black"))
    padded = decode(content, ImageConfig(size=4), "x")
    assert padded[:, 0, 0].tolist() in ([255, 0, 0, 255], [0, 0, 255, 255])
    cropped = decode(content, ImageConfig(size=2, fit="crop"), "x")
    assert cropped.max() == 0


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (2, 4), "black")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    array = decode(encoded(image, "JPEG", exif=exif), ImageConfig(size=4), "x")
    assert (array[0] > 200).all()  # wide now: white bars above and below
    assert (array[1:3] < 50).all()


def bomb(side: int) -> bytes:
    """A PNG whose header promises side x side pixels and which holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 10_000, 60_000])
def test_a_decompression_bomb_is_refused_from_its_header(side):
    with pytest.raises(UserError, match=r"bomb\.png: .*pixels"):
        decode(bomb(side), ImageConfig(size=8), "bomb.png")


def test_the_pixel_limit_is_a_setting():
    content = encoded(Image.new("RGB", (30, 30)))
    decode(content, ImageConfig(size=8, max_pixels=900), "x")
    with pytest.raises(UserError, match=r"30 x 30 pixels are more than data.image.max_pixels"):
        decode(content, ImageConfig(size=8, max_pixels=899), "x")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_is_refused(format_):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), format_)
    with pytest.raises(UserError, match="cut: not a readable PNG, JPEG or WebP image"):
        decode(content[: len(content) // 2], ImageConfig(size=8), "cut")


def test_random_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    for format_ in ("PNG", "JPEG", "WEBP"):
        content = np.frombuffer(encoded(Image.fromarray(noise), format_), np.uint8)
        for _ in range(200):
            damaged = content.copy()
            damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
            try:
                decode(damaged.tobytes(), ImageConfig(size=8, max_pixels=4096), "x")
            except UserError:
                continue


def test_other_formats_are_refused():
    with pytest.raises(UserError, match="not a readable PNG, JPEG or WebP"):
        decode(encoded(Image.new("RGB", (2, 2)), "GIF"), ImageConfig(size=2), "x")


def test_formats_are_known_by_their_signature():
    image = Image.new("RGB", (2, 2))
    found = [extension_of(encoded(image, name)) for name in ("PNG", "JPEG", "WEBP", "BMP")]
    assert found == ["png", "jpg", "webp", None]
