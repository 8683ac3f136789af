"""Positions of the samples inside a webdataset tar."""

import gzip
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from data_pipeline.manifest import SampleEntry
from mezzotint.common import storage
from mezzotint.common.errors import UserError

_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")
_BLOCK = 512


def split_name(name: str) -> tuple[str, str] | None:
    """`a/key.codes.npy` as (`a/key`, `codes.npy`), as webdataset splits it.

    None for names that webdataset skips (no extension, hidden files).
    """
    match = _NAME.match(name)
    return (match[1], match[2]) if match else None


def index_tar(path: Path, name: str) -> list[SampleEntry]:
    """The samples of the uncompressed tar at `path`, which messages call `name`.

    Adjacent members with the same key are one sample, as in webdataset. `tarfile` takes a corrupt
    header, or a truncation between two members, for the end of the archive; here the zero blocks
    that end an archive are required.

    Raises:
        UserError: Not a complete tar archive.
    """
    samples: list[SampleEntry] = []
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                split = split_name(member.name)
                if not member.isfile() or split is None:
                    continue
                key, extension = split
                if not samples or samples[-1].key != key:
                    samples.append(SampleEntry(key=key, members={}))
                if extension in samples[-1].members:
                    raise UserError(f"{name}: '{member.name}' is in the archive twice")
                samples[-1].members[extension] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{name}: not a complete tar archive ({error}); copy it again") from error
    with path.open("rb") as file:
        file.seek(end)
        if file.read(2 * _BLOCK) != bytes(2 * _BLOCK):
            raise UserError(
                f"{name}: the tar archive is cut off or corrupt after byte {end:,}; copy it again"
            )
    return samples


class LocalTar(NamedTuple):
    """A tar on this machine: the file as stored, and the uncompressed tar (perhaps the same)."""

    stored: Path
    plain: Path


@contextmanager
def local_tar(url: str) -> Iterator[LocalTar]:
    """The tar at `url`, or temporary copies of it where it is remote or compressed.

    Raises:
        UserError: It cannot be read or expanded.
    """
    with tempfile.TemporaryDirectory(prefix="mezzotint-") as directory:
        if storage.is_local(url):
            stored = storage.local_path(url)
        else:
            stored = Path(directory) / "stored"
            storage.download(url, stored)
        plain = stored
        if url.endswith(".gz"):
            plain = Path(directory) / "plain"
            expand_gzip(stored, plain, url)
        yield LocalTar(stored, plain)


def expand_gzip(source: Path, target: Path, name: str) -> None:
    """Decompress a file, which messages call `name`.

    Raises:
        UserError: It is missing or not a complete gzip file.
    """
    try:
        with gzip.open(source) as compressed, target.open("wb") as plain:
            shutil.copyfileobj(compressed, plain, 1 << 20)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{name}: not a complete gzip file ({error}); copy it again") from error
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such file") from error


def read_member(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes at `offset` of the uncompressed tar at `path`."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)
