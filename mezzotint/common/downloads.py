"""Large files of object stores: whole to this node's disk, or a range of their bytes."""

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from fsspec import AbstractFileSystem

from mezzotint.common import s3_client
from mezzotint.common.digests import GrowingDigest
from mezzotint.common.storage import REQUEST_TIMEOUT, request, single_request
from mezzotint.common.storage_errors import TransientError

_RANGED = (*s3_client.SCHEMES, "gs://", "gcs://", "az://", "abfs://", "abfss://", "memory://")
"""Stores that always respond to a request for a range with this range. A web server may send the
whole file instead."""

_PIECE = 8 << 20
"""Bytes of one request for a part of a larger range."""


def has_ranges(url: str) -> bool:
    """Whether parts of the file at `url` can be read by `read_range`."""
    return url.startswith(_RANGED)


def read_range(
    url: str,
    start: int,
    end: int | None,
    take: Callable[[bytes], object],
    *,
    timeout: float = REQUEST_TIMEOUT,
    total: float = math.inf,
) -> None:
    """Pass bytes `start` to `end` (exclusive) of the file at `url` to `take`, piece by piece.

    A piece must arrive in `timeout` seconds, and all of them in `total`. `has_ranges` tells whether
    the store can do this.

    Raises:
        NotFoundError: There is no such file.
        TransientError: They cannot be read, or the file ends before; retrying may help.
        UserError: They cannot be read.
    """
    received = 0

    def read(system: AbstractFileSystem, path: str) -> None:
        nonlocal received
        for piece in _pieces(system, path, url, start, end):
            take(piece)
            received += len(piece)

    request(url, "read", read, timeout, lambda: received, total)
    if end is not None and received != end - start:
        raise TransientError(
            f"{url}: cannot be read ({received:,} bytes came instead of bytes {start:,} to "
            f"{end:,}); check the URL and the network"
        )


def _pieces(
    system: AbstractFileSystem, path: str, url: str, start: int, end: int | None
) -> Iterator[bytes]:
    if s3_client.is_readable(url):
        yield from s3_client.chunks(url, start, end)
        return
    assert end is not None, "only S3 is read without an end"
    for first in range(start, end, _PIECE):
        yield bytes(system.cat_file(path, start=first, end=min(first + _PIECE, end)))


def download(
    url: str,
    target: Path,
    *,
    timeout: float = REQUEST_TIMEOUT,
    total: float = math.inf,
) -> str:
    """Copy the file at `url` to the local path `target`, in one request; returns its SHA-256.

    The digest is computed while the bytes arrive. At least one must in `timeout` seconds, and all
    in `total`. The content of `target` is undefined if this raises.

    Raises:
        NotFoundError: There is no such file.
        TransientError: It cannot be read; retrying may help.
        UserError: It cannot be read.
    """
    if s3_client.is_readable(url):
        return _streamed(url, target, timeout, total)
    growing = GrowingDigest(target)

    def progress() -> int:
        growing.advance()
        return growing.position

    def get(system: AbstractFileSystem, path: str) -> None:
        system.get_file(path, str(target), **single_request(url))

    request(url, "read", get, timeout, progress, total)
    return growing.hexdigest()


def _streamed(url: str, target: Path, timeout: float, total: float) -> str:
    digest = hashlib.sha256()
    with target.open("wb") as file:

        def take(piece: bytes) -> None:
            file.write(piece)
            digest.update(piece)

        read_range(url, 0, None, take, timeout=timeout, total=total)
    return digest.hexdigest()
