"""Colour chunks and 16-bit pixels of PNG files."""

import io
import struct
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.colour.matrix_profiles import SRGB, Curve, Primaries, grey_profile, rgb_profile
from data_pipeline.colour.profiles import InvalidProfileError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY_TYPES = (0, 4)
# ITU-T H.273: x, y of red, green, blue and white.
_PRIMARIES = {
    1: SRGB,
    9: Primaries((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290)),
    12: Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.3127, 0.3290)),
}
_CURVES = {4: Curve(2.2), 5: Curve(2.8), 8: Curve(1.0), 13: Curve(None)}


def is_png(content: bytes) -> bool:
    """Whether a file starts as a PNG file does."""
    return content.startswith(_SIGNATURE) and content[12:16] == b"IHDR" and len(content) > 32


def bit_depth(content: bytes) -> int:
    """Bits per channel of a PNG file."""
    return content[24]


def without_profile(content: bytes) -> bytes:
    """A PNG file without its iCCP chunk."""
    for kind, start, end in _chunks(content):
        if kind == b"iCCP":
            return content[:start] + content[end:]
    return content


def profile_of_chunks(content: bytes, embedded: bytes | None) -> bytes | None:
    """The ICC profile of a PNG file in the order of precedence of the PNG specification.

    That is the cICP chunk, the `embedded` profile, the sRGB chunk (None), then gAMA and cHRM. As in
    browsers, a missing cHRM means the primaries of sRGB, a missing gAMA its curve, and a gAMA
    within 5% of 1/2.2 is sRGB's curve too.

    Raises:
        InvalidProfileError: The chunks hold impossible values, or a curve of HDR video.
    """
    header = content[: content.find(b"IDAT")]
    if b"gAMA" not in header and b"cHRM" not in header and b"cICP" not in header:
        return embedded
    found = {kind: content[start + 8 : end - 4] for kind, start, end in _chunks(content)}
    grey = content[25] in _GREY_TYPES
    if b"cICP" in found:
        return _profile_of_code_points(found[b"cICP"], grey=grey)
    if embedded is not None or b"sRGB" in found:
        return embedded
    gamma, chromaticities = found.get(b"gAMA"), found.get(b"cHRM")
    if gamma is None and (chromaticities is None or grey):
        return None
    return _profile_of_values(gamma, None if grey else chromaticities, grey=grey)


def pixels_16_bit(content: bytes) -> tuple[NDArray[np.uint16], NDArray[np.uint16] | None]:
    """A PNG file of 16 bits per channel: (H, W, 1 or 3) colours, and (H, W) alpha or None.

    Pillow keeps the upper 8 bits of most colour types; other raw modes unpack both bytes.
    """
    image = Image.open(io.BytesIO(content), formats=["PNG"])
    key = image.info.get("transparency")
    match content[25]:
        case 0:
            values = np.asarray(image, np.uint16)[..., None]
        case 4:  # unpacked as if the 2 bytes of grey and of alpha were RGBA
            both = _unpacked(content, "RGBA")
            values = _joined(both[..., 0::2], both[..., 1::2])
        case 6:
            values = _joined(_unpacked(content, "RGBA;16B"), _unpacked(content, "RGBA;16L"))
        case _:
            values = _joined(_unpacked(content, "RGB;16B"), _unpacked(content, "RGB;16L"))
    if values.shape[2] in (2, 4):
        return values[..., :-1], values[..., -1]
    if key is None:
        return values, None
    return values, np.where((values == key).all(axis=2), 0, 65535).astype(np.uint16)


def _joined(high: NDArray[np.uint8], low: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return high.astype(np.uint16) * np.uint16(256) + low


def _unpacked(content: bytes, raw_mode: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        return np.asarray(image)


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of every chunk before the pixels."""
    start = len(_SIGNATURE)
    while start + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if kind == b"IDAT" or end > len(content):
            return
        yield kind, start, end
        start = end


@lru_cache(maxsize=64)
def _profile_of_values(gamma: bytes | None, chromaticities: bytes | None, *, grey: bool) -> bytes:
    curve, primaries = Curve(None), SRGB
    try:
        if gamma is not None:
            (value,) = struct.unpack(">I", gamma)
            if not 16_000 <= value <= 625_000:  # libpng's limits
                raise InvalidProfileError(f"a gAMA of {value / 100_000}")
            exponent = 100_000 / value
            curve = Curve(None) if abs(exponent / 2.2 - 1) < 0.05 else Curve(exponent)
        if chromaticities is not None:
            white, *rest = np.array(struct.unpack(">8i", chromaticities)).reshape(4, 2) / 100_000
            red, green, blue, white = ((float(x), float(y)) for x, y in (*rest, white))
            primaries = Primaries(red, green, blue, white)
        return grey_profile(curve) if grey else rgb_profile(primaries, curve)
    except (struct.error, ValueError) as error:
        raise InvalidProfileError(f"its colour chunks: {error}") from error


def _profile_of_code_points(cicp: bytes, *, grey: bool) -> bytes:
    if len(cicp) != 4 or cicp[0] not in _PRIMARIES or cicp[1] not in _CURVES or cicp[2:] != b"\0\1":
        raise InvalidProfileError(f"the cICP chunk {cicp[:4].hex()} is not supported")
    curve = _CURVES[cicp[1]]
    return grey_profile(curve) if grey else rgb_profile(_PRIMARIES[cicp[0]], curve)
