"""Segments of JPEG files (ITU-T T.81, annex B)."""

import struct
from collections.abc import Iterator

_APP2, _START_OF_SCAN = 0xE2, 0xDA
_ICC = b"ICC_PROFILE\0"
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Starts of frames: baseline, extended and progressive, by Huffman codes."""
_PLAIN = frozenset({0xC4, 0xDB, 0xDD, 0xE0, 0xFE, *_FRAMES})
"""Huffman and quantisation tables, restart intervals, JFIF, comments."""
_YCBCR = b"\x03\x01\x02\x03"
"""The number of its components, and their identifiers."""


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of every segment from the second byte on, to the start of a scan."""
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", content, position + 1)
        yield marker, position, position + 2 + length
        if marker == _START_OF_SCAN:
            return
        position += 2 + length


def is_jpeg(content: bytes) -> bool:
    """Whether a file starts as a JPEG file does."""
    return content.startswith(b"\xff\xd8\xff")


def without_profile(content: bytes) -> bytes:
    """A JPEG file without its segments of an ICC profile."""
    kept, start = [], 0
    for marker, position, end in _segments(content):
        if marker == _APP2 and content.startswith(_ICC, position + 4):
            kept.append(content[start:position])
            start = end
    return b"".join([*kept, content[start:]]) if kept else content


def plain_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG file that is 8-bit grey or YCbCr, without EXIF, XMP or profile.

    None: its header has something else, is damaged, or ends early.
    """
    if not is_jpeg(content):
        return None
    size, jfif = None, False
    for marker, position, end in _segments(content):
        if marker == _START_OF_SCAN:
            return size if jfif else None
        if marker not in _PLAIN or end < position + 4:
            return None
        segment = content[position + 4 : end]
        jfif = jfif or (marker == 0xE0 and segment.startswith(b"JFIF\0"))
        if marker in _FRAMES:
            size = _plain_frame(segment) if size is None else None
            if size is None:
                return None
    return None


def _plain_frame(segment: bytes) -> tuple[int, int] | None:
    """Width and height of the frame of a grey or YCbCr image of 8 bits."""
    if len(segment) < 6 or segment[0] != 8:
        return None
    height, width, count = struct.unpack_from(">HHB", segment, 1)
    identifiers = bytes([count]) + segment[6::3]
    plain = identifiers == _YCBCR or (count == 1 and len(segment) == 9)
    return (width, height) if plain and width and height else None
