"""Positions of the samples inside a webdataset tar."""

import gzip
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from data_pipeline.manifest import SampleEntry
from mezzotint.common import downloads, storage
from mezzotint.common.errors import UserError

_NAME = re.compile(r"^((?:.*/)?[^./][^./]*)\.([^/]+)$")
_BLOCK = 512
_NAME_BYTES = 100
_CHUNK = 1 << 20


def split_name(name: str) -> tuple[str, str] | None:
    """`a/key.codes.npy` as (`a/key`, `codes.npy`), as webdataset splits it.

    Extensions are in lower case. None for names that webdataset skips (no extension, hidden files).
    """
    match = _NAME.match(name)
    return (match[1], match[2].lower()) if match else None


class TarIndex(NamedTuple):
    """The samples of a tar, and the members that belong to none."""

    samples: list[SampleEntry]
    ignored: dict[str, list[str]]
    """Names of members by the rule that leaves them out; directories are not counted."""


Split = Callable[[str], tuple[str, str] | None]
"""The key and the extension of a member's name."""


def index_tar(path: Path, name: str, split: Split = split_name) -> TarIndex:
    """The samples of the uncompressed tar at `path`, which messages call `name`.

    Members with the same key are one sample, in any order. Tars that were joined (`cat a.tar
    b.tar`) are one archive. Where a name occurs twice, only adjacent members are one sample, as in
    webdataset: keys may begin again, and another sample's caption must not be taken.

    `tarfile` takes a corrupt header, or a truncation between two members, for the end of the
    archive; here the zero blocks that end an archive are required, and nothing may follow them but
    another archive.

    Raises:
        UserError: Not a complete tar archive.
    """
    found: list[tarfile.TarInfo] = []
    with path.open("rb") as file:
        start: int | None = 0
        while start is not None:
            members, end = _members(file, start, name)
            found += members
            start = _next_archive(file, end, name)
    files = [member.name for member in found if not member.isdir()]
    repeated = len(set(files)) < len(files)
    index = TarIndex([], {})
    latest: dict[str, SampleEntry] = {}
    for member in found:
        sample = _add(index, latest, member, split)
        if repeated and sample is not None:
            latest = {sample.key: sample}
    return index


def _members(file: BinaryIO, start: int, name: str) -> tuple[list[tarfile.TarInfo], int]:
    """The members of the archive that begins at `start`, and where they end."""
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            return archive.getmembers(), archive.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise UserError(f"{name}: not a complete tar archive ({error}); copy it again") from error


def _add(
    index: TarIndex, latest: dict[str, SampleEntry], member: tarfile.TarInfo, split: Split
) -> SampleEntry | None:
    """Add a member to its sample, which is returned; `latest` has the last sample of every key."""
    if member.isdir():
        return None
    parts = split(member.name)
    rule = _ignored(member)
    if rule is not None or parts is None:
        rule = rule or "name without a key or an extension"
        shown = member.name.encode("utf-8", "backslashreplace").decode()
        index.ignored.setdefault(rule, []).append(shown)
        return None
    key, extension = parts
    sample = latest.get(key)
    if sample is None or extension in sample.members:
        sample = latest[key] = SampleEntry(key=key, members={}, attributes={})
        index.samples.append(sample)
    sample.members[extension] = (member.offset_data, member.size)
    return sample


def _ignored(member: tarfile.TarInfo) -> str | None:
    """The rule that leaves a member out, if any."""
    if member.issym() or member.islnk():
        return "link inside an archive"
    if not member.isreg() or member.issparse():
        return "not a plain file"
    if f"/{member.name}".find("/.") >= 0 and any(
        part.startswith(".") and part.strip(".") for part in member.name.split("/")
    ):
        return "hidden name"
    return None if is_text(member.name) else "name that is not UTF-8"


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: it has no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _next_archive(file: BinaryIO, end: int, name: str) -> int | None:
    """The start of the archive that was joined to the one whose members end at `end`, if any.

    Raises:
        UserError: There are no zero blocks at `end`.
    """
    file.seek(end)
    if file.read(2 * _BLOCK) != bytes(2 * _BLOCK):
        raise UserError(
            f"{name}: the tar archive is cut off or corrupt after byte {end:,}; copy it again"
        )
    while chunk := file.read(_CHUNK):
        if rest := chunk.lstrip(b"\0"):
            return (file.tell() - len(rest)) // _BLOCK * _BLOCK
    return None


def misplaced_member(file: int, samples: Iterable[SampleEntry]) -> str | None:
    """The first member of `samples` without its header before its offset in an open tar, if any.

    Checked are the checksum of the header, the size, and names that fit into it as they are.
    """
    for sample in samples:
        for extension, (offset, size) in sample.members.items():
            name = f"{sample.key}.{extension}"
            if not _is_header(os.pread(file, _BLOCK, offset - _BLOCK), name, size):
                return name
    return None


def _is_header(block: bytes, name: str, size: int) -> bool:
    """Whether a block is the header of a member; extensions of `name` are in lower case."""
    if len(block) != _BLOCK or block[156:157] not in (b"0", b"\0", b"7"):
        return False
    try:
        if int(block[148:156].strip(b"\0 "), 8) != sum(block) - sum(block[148:156]) + 8 * 32:
            return False
        # a size of 8 GiB or more is written in another way
        if size < 8 << 30 and int(block[124:136].strip(b"\0 ") or b"0", 8) != size:
            return False
    except ValueError:
        return False
    if len(name) >= _NAME_BYTES or not name.isascii():  # in an extended header before this one
        return True
    found = block[:_NAME_BYTES].partition(b"\0")[0].decode("utf-8", "replace")
    if block[257:263] == b"ustar\0" and block[345]:
        found = f"{block[345:500].partition(bytes(1))[0].decode('utf-8', 'replace')}/{found}"
    return found.lower() == name.lower()


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
            downloads.download(url, stored)
        plain = stored
        if url.lower().endswith((".gz", ".tgz")):
            plain = Path(directory) / "plain"
            expand_gzip(stored, plain, url)
        try:
            yield LocalTar(stored, plain)
        except OSError as error:
            raise UserError(f"{url}: cannot be read ({error}); correct its permissions") from error


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
