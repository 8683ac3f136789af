"""SHA-256 digests, in hexadecimal."""

import hashlib
import os
import sys
from pathlib import Path

_CHUNK = 1 << 18


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


class GrowingDigest:
    """The SHA-256 of a file that other threads write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self.position = 0
        """Bytes taken in."""

    def advance(self, end: int = sys.maxsize) -> None:
        """Take in what the file has by now before byte `end`; it need not be there yet."""
        try:
            with self._path.open("rb", buffering=0) as file:
                self._take(file.fileno(), end)
        except FileNotFoundError:
            return

    def hexdigest(self) -> str:
        """The digest of the finished file.

        Raises:
            OSError: It cannot be read.
        """
        with self._path.open("rb", buffering=0) as file:
            self._take(file.fileno(), sys.maxsize)
        return self._digest.hexdigest()

    def _take(self, file: int, end: int) -> None:
        if os.fstat(file).st_size < self.position:  # the transfer began again
            self._digest, self.position = hashlib.sha256(), 0
        chunk = memoryview(bytearray(_CHUNK))
        while self.position < end:
            count = os.preadv(file, [chunk[: end - self.position]], self.position)
            if count == 0:
                return
            self._digest.update(chunk[:count])
            self.position += count
