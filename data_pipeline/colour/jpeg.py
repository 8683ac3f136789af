"""Profile segments of JPEG files."""

import struct

_APP2, _START_OF_SCAN = 0xE2, 0xDA
_ICC = b"ICC_PROFILE\0"


def is_jpeg(content: bytes) -> bool:
    """Whether a file starts as a JPEG file does."""
    return content.startswith(b"\xff\xd8\xff")


def without_profile(content: bytes) -> bytes:
    """A JPEG file without its segments of an ICC profile."""
    kept, start, position = [], 0, 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", content, position + 1)
        if marker == _START_OF_SCAN:
            break
        end = position + 2 + length
        if marker == _APP2 and content.startswith(_ICC, position + 4):
            kept.append(content[start:position])
            start = end
        position = end
    return b"".join([*kept, content[start:]]) if kept else content
