"""Every kind of image file against littleCMS, and against the formula of its colour space."""

import io
import struct
from dataclasses import dataclass

import numpy as np
import pytest
from image_files import (
    ADOBE_RGB,
    CMYK_INKS,
    DISPLAY_P3,
    SRGB,
    SWAPPED,
    WIDE,
    chunk,
    cmyk_icc,
    encoded,
    formula,
    grey_icc,
    iccp,
    png_file,
    rgb_icc,
    segments_removed,
    with_chunk,
)
from numpy.typing import NDArray
from PIL import Image, ImageCms

from data_pipeline.images import ImageNote, read_image

ALLOWED = 3
RNG = np.random.default_rng(5)
RGB8 = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (5, 6, 3)).astype(np.uint16)
ALPHA8 = RNG.integers(0, 256, (5, 6, 1), dtype=np.uint8)
CMYK8 = RNG.integers(0, 256, (5, 6, 4), dtype=np.uint8)
CMYK8[0] = (255, 0, 0, 0)
EXIF_ORIENTATION = 0x0112
SPACES = {
    "sRGB": (SRGB, None),
    "Adobe RGB": (ADOBE_RGB, 2.2),
    "Display P3": (DISPLAY_P3, None),
    "gamma 1": (SRGB, 1.0),
    "wide": (WIDE, 1.8),
}


@dataclass(frozen=True)
class Case:
    """An image file, and what a colour-managed reader shows."""

    name: str
    content: bytes
    expected: NDArray
    notes: frozenset[ImageNote] = frozenset()


def little_cms(pixels: NDArray, mode: str, profile: bytes) -> NDArray:
    image = Image.fromarray(pixels, mode) if mode == "CMYK" else Image.fromarray(pixels)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    srgb = ImageCms.createProfile("sRGB")
    shown = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    assert shown is not None
    return np.asarray(shown)


def on_white(colours: NDArray, alpha: NDArray) -> NDArray:
    """Colours in levels, alpha from 0 to 1."""
    return colours * alpha + 255 * (1 - alpha)


def grey(levels: NDArray) -> NDArray:
    return np.repeat(levels[..., None], 3, axis=-1)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[EXIF_ORIENTATION] = orientation
    return tags


def upright(pixels: NDArray, orientation: int) -> NDArray:
    """Row 0 and column 0 of the file as EXIF describes them: (5, 6, 3) to what is seen."""
    turned = pixels.transpose(1, 0, 2) if orientation >= 5 else pixels
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return turned[rows, columns]


CONVERTED = frozenset({ImageNote.CONVERTED})
ON_WHITE = frozenset({ImageNote.ON_WHITE})
UPRIGHT = frozenset({ImageNote.UPRIGHT})


def rgb_cases() -> list[Case]:
    cases = [
        Case("png 8", png_file(8, 2, RGB8), RGB8),
        Case("png 16", png_file(16, 2, RGB16), RGB16 / 257),
        Case("jpeg", jpeg := encoded(Image.fromarray(RGB8), "JPEG", quality=95), opened(jpeg)),
    ]
    for name, (primaries, gamma) in SPACES.items():
        profile = rgb_icc(primaries, gamma)
        notes = frozenset() if name == "sRGB" else CONVERTED
        shown = formula(RGB8 / 255, primaries, gamma)
        assert np.abs(shown - little_cms(RGB8, "RGB", profile)).max() < ALLOWED - 1
        cases.append(Case(f"png 8 {name}", png_file(8, 2, RGB8, iccp(profile)), shown, notes))
        content = png_file(16, 2, RGB16, iccp(profile))
        shown = formula(RGB16 / 65535, primaries, gamma)
        cases.append(Case(f"png 16 {name}", content, shown, notes))
        for format_, options in (("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})):
            content = encoded(Image.fromarray(RGB8), format_, icc_profile=profile, **options)
            shown = little_cms(opened(content), "RGB", profile)
            cases.append(Case(f"{format_} {name}", content, shown, notes))
    return cases


def opened(content: bytes) -> NDArray:
    return np.asarray(Image.open(io.BytesIO(content)))


def grey_cases() -> list[Case]:
    cases = []
    for name, gamma in {"none": None, "sRGB": None, "2.2": 2.2, "1.0": 1.0}.items():
        profile = grey_icc(gamma)
        chunks = [] if name == "none" else [iccp(profile)]
        notes = frozenset() if gamma is None else CONVERTED
        for depth, values in ((8, RGB8[..., 0]), (16, RGB16[..., 0])):
            shown = formula(grey(values) / (2**depth - 1), SRGB, gamma)
            content = png_file(depth, 0, values, *chunks)
            cases.append(Case(f"grey {depth} profile {name}", content, shown, notes))
    content = encoded(Image.fromarray(RGB8[..., 0]), "JPEG", icc_profile=grey_icc(2.2))
    shown = little_cms(opened(content), "L", grey_icc(2.2))
    cases.append(Case("grey JPEG", content, shown, CONVERTED))
    for depth in (1, 2, 4):
        highest = 2**depth - 1
        levels = RGB8[..., 0] & highest
        shown = grey(levels) * (255 / highest)
        cases.append(Case(f"grey {depth}", png_file(depth, 0, levels), shown))
        key = chunk(b"tRNS", struct.pack(">H", levels[0, 0]))
        shown = on_white(shown, (levels != levels[0, 0])[..., None])
        cases.append(Case(f"grey {depth} key", png_file(depth, 0, levels, key), shown, ON_WHITE))
    return cases


def alpha_cases() -> list[Case]:
    profile = rgb_icc(ADOBE_RGB, 2.2)
    adobe = formula(RGB8 / 255, ADOBE_RGB, 2.2)
    alpha16 = RGB16[..., :1]
    rgba16, la16 = (
        np.concatenate([RGB16, alpha16], 2),
        np.concatenate([alpha16, RGB16[..., 1:2]], 2),
    )
    key8 = chunk(b"tRNS", struct.pack(">3H", *RGB8[1, 2].tolist()))
    key16 = chunk(b"tRNS", struct.pack(">3H", *RGB16[1, 2].tolist()))
    near = RGB16.copy()
    near[1, 3] = near[1, 2] ^ 1  # differs from the transparent colour in the lowest bit
    keyed = np.zeros((5, 6, 1), bool)
    keyed[1, 2] = True
    grey_key = chunk(b"tRNS", struct.pack(">H", int(near[1, 2, 0])))
    la8 = np.concatenate([RGB8[..., :1], ALPHA8], 2)
    shown_la8 = formula(grey(RGB8[..., 0]) / 255, SRGB, 1.0)
    files = {
        "RGBA 8": (png_file(8, 6, np.concatenate([RGB8, ALPHA8], 2)), RGB8, ALPHA8 / 255),
        "RGBA 16": (png_file(16, 6, rgba16), RGB16 / 257, alpha16 / 65535),
        "LA 8": (png_file(8, 4, la8), grey(RGB8[..., 0]), ALPHA8 / 255),
        "LA 16": (png_file(16, 4, la16), grey(la16[..., 0]) / 257, la16[..., 1:] / 65535),
        "RGB 8 key": (png_file(8, 2, RGB8, key8), RGB8, ~keyed),
        "RGB 16 key": (png_file(16, 2, near, key16), near / 257, ~keyed),
        "grey 16 key": (png_file(16, 0, near[..., 0], grey_key), grey(near[..., 0]) / 257, ~keyed),
    }
    cases = [Case(name, file, on_white(*shown), ON_WHITE) for name, (file, *shown) in files.items()]
    managed = {
        "RGBA 8": (files["RGBA 8"][0], profile, adobe, ALPHA8 / 255),
        "RGB 8 key": (files["RGB 8 key"][0], profile, adobe, ~keyed),
        "LA 8": (files["LA 8"][0], grey_icc(1.0), shown_la8, ALPHA8 / 255),
    }
    for name, (file, icc_profile, colours, alpha) in managed.items():
        content = with_chunk(file, iccp(icc_profile))
        both = ON_WHITE | CONVERTED
        cases.append(Case(f"{name} profile", content, on_white(colours, alpha), both))
    rgba = encoded(
        Image.fromarray(np.concatenate([RGB8, ALPHA8], 2)), "WEBP", lossless=True, exact=True
    )
    cases.append(Case("RGBA WebP", rgba, on_white(RGB8, ALPHA8 / 255), ON_WHITE))
    opaque = png_file(8, 6, np.concatenate([RGB8, np.full_like(ALPHA8, 255)], 2))
    return [*cases, Case("RGBA opaque", opaque, RGB8)]


def palette_cases() -> list[Case]:
    cases = []
    for depth in (1, 2, 4, 8):
        indices = RGB8[..., 0] & min(2**depth - 1, 15)
        palette = RNG.integers(0, 256, (min(2**depth, 16), 3), dtype=np.uint8)
        colours = palette[indices]
        plte = chunk(b"PLTE", palette.tobytes())
        cases.append(Case(f"palette {depth}", png_file(depth, 3, indices, plte), colours))
        profile = rgb_icc(ADOBE_RGB, 2.2)
        managed = formula(colours / 255, ADOBE_RGB, 2.2)
        content = png_file(depth, 3, indices, iccp(profile), plte)
        cases.append(Case(f"palette {depth} profile", content, managed, CONVERTED))
        many = np.resize(np.array([0, 100, 255], np.uint8), len(palette))
        one = np.array([255, 0], np.uint8)
        for kind, alphas in (("one", one), ("many", many)):
            alpha = np.resize([*alphas, *[255] * 16], 16)[indices][..., None] / 255
            content = png_file(
                depth, 3, indices, iccp(profile), plte, chunk(b"tRNS", bytes(alphas))
            )
            name = f"palette {depth} {kind} transparent, profile"
            cases.append(Case(name, content, on_white(managed, alpha), CONVERTED | ON_WHITE))
    return cases


def inks_of(content: bytes) -> NDArray:
    """Amounts of ink of a CMYK JPEG, which stores 255 where there is no ink."""
    image = Image.open(io.BytesIO(content))
    assert image.mode == "CMYK"
    return np.asarray(image)


def cmyk_cases() -> list[Case]:
    profile = cmyk_icc()
    cases = []
    for transform, name in ((0, "CMYK"), (2, "YCCK"), (None, "CMYK without marker")):
        for icc_profile in (None, profile):
            content = encoded(
                Image.fromarray(CMYK8, "CMYK"), "JPEG", quality=95, icc_profile=icc_profile
            )
            marker = content.index(b"Adobe")
            if transform is None:
                content = segments_removed(content, 0xEE)
            else:
                content = content[: marker + 11] + bytes([transform]) + content[marker + 12 :]
            inks = inks_of(content)
            if icc_profile is None:
                free = (255 - inks.astype(float)) / 255
                shown, notes = 255 * free[..., :3] * free[..., 3:], {ImageNote.CMYK}
            else:
                shown, notes = little_cms(inks, "CMYK", profile), {ImageNote.CONVERTED}
            label = f"{name}, {'profile' if icc_profile else 'no profile'}"
            cases.append(Case(label, content, shown, frozenset(notes)))
    return cases


def orientation_cases() -> list[Case]:
    cases = []
    for number in range(1, 9):
        notes = frozenset() if number == 1 else UPRIGHT
        content = encoded(Image.fromarray(RGB8), "JPEG", quality=95, exif=exif(number))
        shown = upright(opened(content), number)
        cases.append(Case(f"JPEG orientation {number}", content, shown, notes))
        png = encoded(Image.fromarray(RGB8), "PNG", exif=exif(number))
        cases.append(Case(f"PNG orientation {number}", png, upright(RGB8, number), notes))
    webp = encoded(Image.fromarray(RGB8), "WEBP", lossless=True, exif=exif(6))
    xmp = b'<x xmlns:tiff="t"><tiff:Orientation>3</tiff:Orientation></x>'
    both = encoded(Image.fromarray(RGB8), "WEBP", lossless=True, exif=exif(6), xmp=xmp)
    alone = encoded(Image.fromarray(RGB8), "WEBP", lossless=True, xmp=xmp)
    deep = with_chunk(png_file(16, 2, RGB16), chunk(b"eXIf", exif(5).tobytes()[6:]))
    return [
        *cases,
        Case("WebP orientation 6", webp, upright(RGB8, 6), UPRIGHT),
        Case("EXIF before XMP", both, upright(RGB8, 6), UPRIGHT),
        Case("XMP alone", alone, upright(RGB8, 3), UPRIGHT),
        Case("16 bits, orientation 5", deep, upright(RGB16 / 257, 5), UPRIGHT),
    ]


CASES = [
    *rgb_cases(),
    *grey_cases(),
    *alpha_cases(),
    *palette_cases(),
    *cmyk_cases(),
    *orientation_cases(),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_image_is_shown_as_by_a_colour_managed_reader(case: Case):
    decoded = read_image(case.content, case.name, max_pixels=1000)
    shown = np.asarray(decoded.image)
    assert shown.shape == case.expected.shape
    assert np.abs(shown - case.expected.astype(float)).max() <= ALLOWED
    assert decoded.notes == case.notes


@pytest.mark.parametrize(
    ("profile", "colour", "shown"),
    [
        (rgb_icc(ADOBE_RGB, 2.2), (200, 60, 50), (231, 57, 46)),
        (rgb_icc(DISPLAY_P3, 2.2), (60, 160, 60), (0, 164, 35)),
        (rgb_icc(SWAPPED, None), (0, 255, 0), (255, 0, 0)),
        (cmyk_icc(), (255, 0, 0, 0), CMYK_INKS["cyan"]),
        (cmyk_icc(), (0, 255, 0, 0), CMYK_INKS["magenta"]),
        (cmyk_icc(), (0, 0, 255, 0), CMYK_INKS["yellow"]),
    ],
)
def test_known_colours(profile: bytes, colour: tuple[int, ...], shown: tuple[int, ...]):
    mode, format_ = ("CMYK", "JPEG") if len(colour) == 4 else ("RGB", "PNG")
    content = encoded(Image.new(mode, (8, 8), colour), format_, icc_profile=profile)
    found = np.asarray(read_image(content, "x", max_pixels=100).image)[4, 4].astype(int)
    assert np.abs(found - shown).max() <= ALLOWED
