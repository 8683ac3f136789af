"""What lies where inside a webdataset tar."""

import gzip
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mezzotint.common import storage
from mezzotint.common.errors import UserError

_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")
_BLOCK = 512


@dataclass(frozen=True)
class TarSample:
    """The members of one sample: extension to (byte offset, size)."""

    key: str
    members: dict[str, tuple[int, int]]


def split_name(name: str) -> tuple[str, str] | None:
    """``a/key.codes.npy`` as (``a/key``, ``codes.npy``), as webdataset splits it.

    None for names that webdataset skips (no extension, hidden files).
    """
    match = _NAME.match(name)
    return (match[1], match[2]) if match else None


def index_tar(path: Path, name: str) -> list[TarSample]:
    """The samples of the plain tar at ``path``; ``name`` stands for it in messages.

    Neighbouring members with one key make a sample, as in webdataset. Unlike ``tarfile``, which
    takes a corrupt header or a cut on a member's boundary for the end of the archive, this
    insists on the zero blocks that end one.

    Raises:
        UserError: Not a whole tar archive.
    """
    samples: list[TarSample] = []
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
                    samples.append(TarSample(key, {}))
                if extension in samples[-1].members:
                    raise UserError(f"{name}: '{member.name}' is in the archive twice")
                samples[-1].members[extension] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{name}: not a whole tar archive ({error}); copy it again") from error
    with path.open("rb") as file:
        file.seek(end)
        if file.read(2 * _BLOCK) != bytes(2 * _BLOCK):
            raise UserError(
                f"{name}: the tar archive is cut or corrupt after byte {end:,}; copy it again"
            )
    return samples


@dataclass(frozen=True)
class LocalTar:
    """A tar file on this machine."""

    stored: Path
    """The bytes as they are stored, perhaps compressed."""
    plain: Path
    """The plain tar."""


@contextmanager
def local_tar(url: str) -> Iterator[LocalTar]:
    """The tar behind ``url``: itself, or temporary copies. A remote one is fetched once.

    Raises:
        UserError: It cannot be read or expanded.
    """
    with tempfile.TemporaryDirectory(prefix="mezzotint-") as directory:
        if storage.is_local(url):
            stored = storage.local_path(url)
        else:
            stored = Path(directory) / "stored"
            storage.download(url, stored)
        if not url.endswith(".gz"):
            yield LocalTar(stored, stored)
            return
        plain = Path(directory) / "plain"
        try:
            with gzip.open(stored) as source, plain.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{url}: damaged gzip file ({error}); copy it again") from error
        except FileNotFoundError as error:
            raise UserError(f"{url}: no such file") from error
        yield LocalTar(stored, plain)


def read_member(path: Path, place: tuple[int, int]) -> bytes:
    """The content at (byte offset, size) of the plain tar at ``path``."""
    with path.open("rb") as file:
        file.seek(place[0])
        return file.read(place[1])
