"""SHA-256 digests, in hexadecimal."""

import hashlib
from pathlib import Path


def sha256(content: bytes | str) -> str:
    """Digest of bytes, or of a text in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Digest of a file's content.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_digest(text: str) -> bool:
    """Whether a text has the form of a digest."""
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
