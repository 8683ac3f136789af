"""Writing the tar of a shard, as webdataset's TarWriter does, byte for byte.

Headers of plain names are made from one template, which takes a third of tarfile's time; a shard
with other names is written by webdataset.
"""

import hashlib
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from data_pipeline.manifest import Attribute, SampleEntry
from data_pipeline.tar import index_tar
from mezzotint.common.digests import sha256_file

_BLOCK = 512
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_LARGEST = 8 << 30
"""Sizes from here on are written in another way."""


class Sample(Protocol):
    """A sample to write."""

    @property
    def key(self) -> str: ...
    @property
    def members(self) -> Mapping[str, bytes]: ...
    @property
    def attributes(self) -> Mapping[str, Attribute]: ...


def write_tar(samples: Sequence[Sample], path: Path, name: str) -> tuple[list[SampleEntry], str]:
    """Write a tar, which messages call `name`.

    Returns:
        The samples with the positions of their members, and the SHA-256 of the file.

    Raises:
        OSError: It cannot be written.
    """
    if all(_is_plain(one.key, each) for one in samples for each in one.members.items()):
        with path.open("wb") as file:
            return _write(samples, file)
    _write_by_webdataset(samples, path)
    attributes = {sample.key: dict(sample.attributes) for sample in samples}
    entries = [
        entry.model_copy(update={"attributes": attributes[entry.key]})
        for entry in index_tar(path, name).samples
    ]
    return entries, sha256_file(path)


def _is_plain(key: str, member: tuple[str, bytes]) -> bool:
    """Whether a member has a name and a size that fit into a header of the oldest format."""
    extension, content = member
    name = f"{key}.{extension}"
    return name.isascii() and len(name) < _NAME.stop and len(content) < _LARGEST


def _write(samples: Sequence[Sample], file: BinaryIO) -> tuple[list[SampleEntry], str]:
    entries, end, digest = [], 0, hashlib.sha256()
    template = _template()
    unchanged = sum(template)
    for sample in samples:
        members = {}
        for extension in sorted(sample.members):
            content = sample.members[extension]
            name, size = f"{sample.key}.{extension}".encode(), b"%011o" % len(content)
            header = bytearray(template)
            header[: len(name)] = name
            header[_SIZE.start : _SIZE.start + 11] = size
            header[_CHECKSUM] = b"%06o\0 " % (unchanged + sum(name) + sum(size))
            written = b"".join((header, content, bytes(-len(content) % _BLOCK)))
            file.write(written)
            digest.update(written)
            members[extension] = (end + _BLOCK, len(content))
            end += len(written)
        entries.append(
            SampleEntry(key=sample.key, members=members, attributes=dict(sample.attributes))
        )
    rest = bytes(2 * _BLOCK + -(end + 2 * _BLOCK) % tarfile.RECORDSIZE)
    file.write(rest)
    digest.update(rest)
    return entries, digest.hexdigest()


def _template() -> bytes:
    """A header without name and size, and with blanks as its checksum."""
    member = tarfile.TarInfo()
    member.mode, member.uname, member.gname = 0o444, "bigdata", "bigdata"
    header = bytearray(member.tobuf(tarfile.PAX_FORMAT))
    header[_SIZE] = bytes(12)
    header[_CHECKSUM] = b" " * 8
    return bytes(header)


def _write_by_webdataset(samples: Sequence[Sample], path: Path) -> None:
    # disables webdataset's pickle and shell handlers; read when webdataset is imported
    os.environ.setdefault("WDS_SECURE", "1")
    import webdataset

    with path.open("wb") as file, webdataset.TarWriter(file, mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write({"__key__": sample.key, **sample.members})
