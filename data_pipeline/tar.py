"""What lies where inside a webdataset tar."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError

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
        DataError: Not a whole tar archive.
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
                    raise DataError(f"{name}: '{member.name}' is in the archive twice")
                samples[-1].members[extension] = (member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{name}: not a whole tar archive ({error}); copy it again") from error
    with path.open("rb") as file:
        file.seek(end)
        if file.read(2 * _BLOCK) != bytes(2 * _BLOCK):
            raise DataError(
                f"{name}: the tar archive is cut or corrupt after byte {end:,}; copy it again"
            )
    return samples


def read_members(path: Path, sample: TarSample) -> Iterator[tuple[str, bytes]]:
    """The (extension, content) pairs of ``sample`` in the plain tar at ``path``."""
    with path.open("rb") as file:
        for extension, (offset, size) in sample.members.items():
            file.seek(offset)
            yield extension, file.read(size)
