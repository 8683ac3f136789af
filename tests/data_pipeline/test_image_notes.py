"""What cannot be used, or is only one of several, is noted."""

import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from image_files import (
    ADOBE_RGB,
    DISPLAY_P3,
    SRGB,
    SWAPPED,
    chunk,
    cmyk_icc,
    encoded,
    formula,
    grey_icc,
    icc,
    iccp,
    png_file,
    rgb_icc,
    segments_removed,
    with_chunk,
)
from PIL import Image

from data_pipeline.images import DecodedImage, ImageNote, read_image

RED = np.full((4, 4, 3), (200, 60, 50), np.uint8)
PLAIN = png_file(8, 2, RED)
IGNORED = frozenset({ImageNote.PROFILE_IGNORED})
BROKEN_TAGS = rgb_icc(ADOBE_RGB, 2.2)[:200]


def read(content: bytes) -> DecodedImage:
    return read_image(content, "x", max_pixels=10_000)


def pixel(content: bytes) -> tuple[int, ...]:
    return tuple(np.asarray(read(content).image)[1, 1].tolist())


@pytest.mark.parametrize(
    "new",
    [
        iccp(b"no profile"),
        iccp(b""),
        iccp(BROKEN_TAGS),
        iccp(rgb_icc(ADOBE_RGB, 2.2)[:-100]),
        iccp(grey_icc(2.2)),
        iccp(cmyk_icc()),
        iccp(icc(b"RGB ", {}, b"link", b"RGB ")),
        iccp(icc(b"RGB ", {}, b"abst")),
        iccp(icc(b"RGB ", {})),
        chunk(b"iCCP", b"name\0\0not compressed"),
        chunk(b"iCCP", b"name\0\1" + b"unknown method"),
        chunk(b"iCCP", b"no end of the name"),
        iccp(rgb_icc(ADOBE_RGB, 2.2))[:-1] + b"?",  # a wrong checksum
        iccp(rgb_icc(ADOBE_RGB, 2.2) + bytes(2_000_000)),  # more than Pillow decompresses
    ],
)
def test_a_profile_of_no_use_is_ignored(new: bytes):
    decoded = read(with_chunk(PLAIN, new))
    assert (np.asarray(decoded.image) == RED).all()
    assert decoded.notes == IGNORED


def test_a_profile_of_no_use_in_other_formats_is_ignored():
    image = Image.fromarray(RED)
    for format_ in ("JPEG", "WEBP"):
        for profile in (b"no profile", grey_icc(2.2), BROKEN_TAGS):
            assert read(encoded(image, format_, icc_profile=profile)).notes == IGNORED
    grey = encoded(image.convert("L"), icc_profile=rgb_icc(ADOBE_RGB, 2.2))
    assert read(grey).notes == IGNORED
    cmyk = encoded(image.convert("CMYK"), "JPEG", icc_profile=rgb_icc(ADOBE_RGB, 2.2))
    assert read(cmyk).notes == IGNORED | {ImageNote.CMYK}


def test_a_jpeg_profile_of_which_a_part_is_missing_is_ignored():
    profile = rgb_icc(SWAPPED, None) + bytes(100_000)
    content = encoded(Image.fromarray(RED), "JPEG", icc_profile=profile)
    assert read(content).notes == {ImageNote.CONVERTED}
    first = content.index(b"\xff\xe2")
    end = first + 2 + struct.unpack_from(">H", content, first + 2)[0]
    assert read(content[:first] + content[end:]).notes == IGNORED
    assert read(segments_removed(content, 0xE2)).notes == frozenset()


def test_a_jpeg_profile_segment_that_is_too_short_is_ignored():
    content = encoded(Image.fromarray(RED), "JPEG", icc_profile=rgb_icc(SWAPPED, None))
    short = content[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + content[2:]
    decoded = read(short)
    assert decoded.notes == IGNORED
    assert np.array_equal(decoded.image, read(segments_removed(content, 0xE2)).image)


def gamma(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


def chromaticities(primaries: tuple[float, ...]) -> bytes:
    values = (0.3127, 0.3290, *primaries)
    return chunk(b"cHRM", struct.pack(">8I", *(round(one * 100_000) for one in values)))


def code_points(*values: int) -> bytes:
    return chunk(b"cICP", bytes(values))


SRGB_CHUNK = chunk(b"sRGB", b"\0")


@pytest.mark.parametrize(
    ("chunks", "primaries", "exponent"),
    [
        ((gamma(1.0),), SRGB, 1.0),
        ((gamma(1 / 1.8),), SRGB, 1.8),
        ((chromaticities(DISPLAY_P3),), DISPLAY_P3, None),
        ((gamma(1 / 1.8), chromaticities(ADOBE_RGB)), ADOBE_RGB, 1.8),
        ((gamma(1 / 2.2), chromaticities(DISPLAY_P3)), DISPLAY_P3, None),
        ((code_points(12, 13, 0, 1),), DISPLAY_P3, None),
        ((code_points(1, 8, 0, 1), iccp(rgb_icc(SWAPPED, None))), SRGB, 1.0),
        ((iccp(rgb_icc(ADOBE_RGB, 2.2)), gamma(1.0)), ADOBE_RGB, 2.2),
    ],
)
def test_colour_chunks_of_png_are_followed(chunks, primaries, exponent):
    for depth in (8, 16):
        values = RED.astype(np.uint16) * (1 if depth == 8 else 257)
        decoded = read(png_file(depth, 2, values, *chunks))
        expected = formula(RED / 255, primaries, exponent)
        assert np.abs(np.asarray(decoded.image) - expected).max() <= 2
        assert decoded.notes == {ImageNote.CONVERTED}


@pytest.mark.parametrize(
    "chunks",
    [
        (gamma(0.45455),),
        (gamma(0.45455), chromaticities(SRGB)),
        (SRGB_CHUNK, gamma(1.0), chromaticities(DISPLAY_P3)),
        (code_points(1, 13, 0, 1), gamma(1.0)),
        (iccp(rgb_icc(SRGB, None)), gamma(1.0)),
    ],
)
def test_colour_chunks_that_mean_srgb_change_nothing(chunks):
    decoded = read(png_file(8, 2, RED, *chunks))
    assert (np.asarray(decoded.image) == RED).all()
    assert decoded.notes == frozenset()


@pytest.mark.parametrize(
    "new",
    [
        gamma(0.0),
        gamma(1000.0),
        chromaticities((0.3, 0.3) * 3),
        chromaticities((0.0,) * 6),
        code_points(9, 16, 0, 1),  # the curve of HDR video
        code_points(2, 2, 0, 1),
        code_points(1, 13, 6, 0),
    ],
)
def test_impossible_colour_chunks_are_ignored(new: bytes):
    decoded = read(with_chunk(PLAIN, new))
    assert (np.asarray(decoded.image) == RED).all()
    assert decoded.notes == IGNORED


def test_grey_follows_its_gamma_alone():
    grey = np.full((4, 4), 100, np.uint8)
    content = png_file(8, 0, grey, gamma(1.0), chromaticities(DISPLAY_P3))
    assert pixel(content) == pytest.approx(formula(np.full(3, 100 / 255), SRGB, 1.0), abs=1)
    assert read(png_file(8, 0, grey, chromaticities(DISPLAY_P3))).notes == frozenset()


def test_a_cmyk_jpeg_without_adobe_marker_stores_inverted_ink_as_with_it():
    """As OpenCV 5.0, simplejpeg 1.9, libvips 8.18 and browsers read it."""
    red = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    bare = segments_removed(red, 0xEE)
    assert b"Adobe" in red
    assert b"Adobe" not in bare
    assert pixel(red) == pixel(bare) == (255, 0, 0)


def test_the_first_frame_is_taken_and_noted():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format_, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("MPO", {})):
        content = encoded(frames[0], format_, save_all=True, append_images=frames[1:], **options)
        assert pixel(content) == pytest.approx((255, 0, 0), abs=2)
        assert read(content).notes == {ImageNote.FIRST_FRAME}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # by Pillow
def test_exif_that_cannot_be_read_is_ignored():
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        content = encoded(Image.fromarray(RED), "JPEG", exif=exif)
        decoded = read(content)
        assert decoded.image.size == (4, 4)
        assert decoded.notes <= {ImageNote.EXIF_IGNORED}


def test_the_colour_space_of_exif_is_no_profile():
    tags = Image.Exif()
    tags.get_ifd(0x8769)[0xA001] = 0xFFFF  # not sRGB: cameras mean Adobe RGB
    decoded = read(encoded(Image.fromarray(RED), exif=tags))
    assert (np.asarray(decoded.image) == RED).all()
    assert decoded.notes == frozenset()


def test_an_orientation_that_does_not_exist_changes_nothing():
    for orientation in (0, 9, 77):
        tags = Image.Exif()
        tags[0x0112] = orientation
        assert read(encoded(Image.fromarray(RED), exif=tags)).notes == frozenset()


def test_threads_share_conversions():
    files, shown = [], []
    for number in range(24):  # more profiles than are kept
        exponent = 1.0 + number / 10
        files.append(png_file(8, 2, RED, iccp(rgb_icc(ADOBE_RGB, exponent))))
        shown.append(formula(RED[0, 0] / 255, ADOBE_RGB, round(exponent * 256) / 256))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(pixel, files * 8))
    assert np.abs(np.array(found) - np.array(shown * 8)).max() <= 2
    assert all(one != other for one, other in pairwise(found[:24]))
