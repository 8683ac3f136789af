"""Image files and ICC profiles made byte by byte, independent of what reads them."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SRGB = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""x and y of red, green and blue; white is D65."""
ADOBE_RGB = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
DISPLAY_P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
WIDE = (0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
SWAPPED = (0.30, 0.60, 0.64, 0.33, 0.15, 0.06)

_D50 = np.array([0.9642, 1.0, 0.8249])
_D65 = np.array([0.3127 / 0.3290, 1.0, 0.3583 / 0.3290])
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_D65_TO_D50 = (
    np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ _D65)) @ _BRADFORD
)


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format_, **options)
    return content.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png_file(depth: int, colour_type: int, values: NDArray, *chunks: bytes) -> bytes:
    """A PNG of (H, W) or (H, W, channels) values, `depth` bits each."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    if depth == 16:
        packed = rows.astype(">u2").view(np.uint8).reshape(height, -1)
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
        packed = np.packbits(bits.reshape(height, -1), axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(data))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"profile\0\0" + zlib.compress(profile))


def with_chunk(content: bytes, new: bytes) -> bytes:
    """A PNG file with one more chunk behind its header."""
    return content[:33] + new + content[33:]


def segments_removed(content: bytes, marker: int) -> bytes:
    """A JPEG file without its segments of a kind."""
    kept, start = content[:2], 2
    while content[start + 1] != 0xDA:
        end = start + 2 + struct.unpack_from(">H", content, start + 2)[0]
        if content[start + 1] != marker:
            kept += content[start:end]
        start = end
    return kept + content[start:]


def matrix_to_xyz(primaries: Sequence[float]) -> NDArray[np.float64]:
    """Linear RGB to XYZ, both relative to D65."""
    x, y = np.array(primaries)[0::2], np.array(primaries)[1::2]
    columns = np.stack([x / y, np.ones(3), (1 - x - y) / y])
    return columns * np.linalg.solve(columns, _D65)


def icc(
    space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ "
) -> bytes:
    """An ICC profile of version 2."""
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(tag))
        data += tag + bytes(-len(tag) % 4)
    header = bytearray(128)
    header[:4] = struct.pack(">I", start + len(data))
    header[8:12] = b"\x02\x40\0\0"
    header[12:24] = kind + space + pcs
    header[36:40] = b"acsp"
    header[68:80] = _xyz(_D50)[8:]
    return bytes(header) + table + data


def rgb_icc(primaries: Sequence[float], gamma: float | None) -> bytes:
    """A profile of red, green and blue with a power, or with sRGB's curve."""
    columns = (_D65_TO_D50 @ matrix_to_xyz(primaries)).T
    tags = {b"wtpt": _xyz(_D65)}
    for name, column in zip((b"r", b"g", b"b"), columns, strict=True):
        tags |= {name + b"XYZ": _xyz(column), name + b"TRC": _curve(gamma)}
    return icc(b"RGB ", tags)


def grey_icc(gamma: float | None) -> bytes:
    return icc(b"GRAY", {b"wtpt": _xyz(_D50), b"kTRC": _curve(gamma)})


CMYK_INKS = {"cyan": (5, 158, 224), "magenta": (230, 0, 126), "yellow": (255, 237, 0)}
"""What the inks of `cmyk_icc` look like in sRGB."""


def cmyk_icc() -> bytes:
    """A printer's profile: a table of the 16 overprints, each the product of its inks' colours."""
    inks = [*CMYK_INKS.values(), (29, 29, 27)]
    nodes = b""
    for number in range(16):
        linear = np.ones(3)
        for position, ink in enumerate(inks):
            if number >> (3 - position) & 1:
                linear = linear * decode(np.array(ink) / 255, None)
        nodes += _lab16(linear)
    head = struct.pack(">4s4xBBBx9i", b"mft2", 4, 3, 2, *np.diag([65536] * 3).ravel().tolist())
    ramp = struct.pack(">2H", 0, 65535)
    table = head + struct.pack(">2H", 2, 2) + 4 * ramp + nodes + 3 * ramp
    return icc(b"CMYK", {b"wtpt": _xyz(_D50), b"A2B0": table}, b"prtr", b"Lab ")


def decode(values: NDArray, gamma: float | None) -> NDArray[np.float64]:
    """Encoded to linear, 0 to 1."""
    if gamma is not None:
        return np.asarray(values, float) ** gamma
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encode(linear: NDArray) -> NDArray[np.float64]:
    """Linear to sRGB, 0 to 1."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def formula(values: NDArray, primaries: Sequence[float], gamma: float | None) -> NDArray:
    """Colours (..., 3) from 0 to 1 of an RGB space as sRGB levels, by matrix and curve."""
    matrix = np.linalg.solve(matrix_to_xyz(SRGB), matrix_to_xyz(primaries))
    return 255 * encode(decode(values, gamma) @ matrix.T)


def _lab16(linear: NDArray) -> bytes:
    """Linear sRGB as CIE L*a*b* of 16 bits, relative to D50."""
    xyz = _D65_TO_D50 @ matrix_to_xyz(SRGB) @ linear / _D50
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness = 116 * root[1] - 16
    lab = (lightness * 2.55, 500 * (root[0] - root[1]) + 128, 200 * (root[1] - root[2]) + 128)
    return struct.pack(">3H", *(round(float(np.clip(one, 0, 255)) * 256) for one in lab))


def _xyz(value: NDArray) -> bytes:
    return struct.pack(">4s4x3i", b"XYZ ", *(round(one * 65536) for one in value.tolist()))


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return struct.pack(">4s4xIH", b"curv", 1, round(gamma * 256))
    levels = np.round(decode(np.linspace(0, 1, 1024), None) * 65535).astype(">u2")
    return struct.pack(">4s4xI", b"curv", 1024) + levels.tobytes()
