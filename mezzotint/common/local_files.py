"""All files below a local directory, with links followed."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class FileStatus(NamedTuple):
    """What a listing knows of a file without reading it."""

    size: int
    stamp: str
    """Differs once the content was written again: local times, a store's ETag or date."""


class Listing(NamedTuple):
    """Files by relative path, sorted, and what was left out."""

    files: dict[str, FileStatus]
    """A link without a target is a file of 0 bytes, which cannot be read."""
    repeated: list[str]
    """Links to a directory that is listed under another path, or that contains the link."""
    linked: list[str]
    """Files that are links, or that are below a link."""
    special: list[str]
    """Neither files nor directories: sockets, pipes, devices."""


def list_files(root: Path) -> Listing:
    """All files below `root`.

    Links are followed. A directory is listed once: under its own path, else under that of the first
    link to it, so that links to a directory above them end.

    Raises:
        OSError: A directory cannot be listed.
    """
    listing = Listing({}, [], [], [])
    through: set[str] = set()
    seen = {_identity(os.stat(root))}
    links: list[str] = []
    pending = [""]
    while pending or links:
        linked = not pending
        directory = pending.pop() if pending else links.pop(0)
        if linked:
            identity = _identity(os.stat(root / directory))
            if identity in seen:
                listing.repeated.append(directory)
                continue
            seen.add(identity)
        for name, entry, status in _entries(root / directory):
            path = f"{directory}/{name}" if directory else name
            if stat.S_ISDIR(status.st_mode):
                if entry.is_symlink():
                    links.append(path)
                    through.add(path)
                elif _identity(status) not in seen:
                    seen.add(_identity(status))
                    pending.append(path)
                    if directory in through:
                        through.add(path)
                else:
                    listing.repeated.append(path)
            elif stat.S_ISREG(status.st_mode):
                listing.files[path] = local_status(status)
                if entry.is_symlink() or directory in through:
                    listing.linked.append(path)
            elif stat.S_ISLNK(status.st_mode):
                listing.files[path] = FileStatus(0, "link without a target")
            else:
                listing.special.append(path)
    files, *others = listing
    return Listing(dict(sorted(files.items())), *map(sorted, others))


def local_status(status: os.stat_result) -> FileStatus:
    """The status of a local file.

    The time of change is part of it, since a copy may restore the time of modification.
    """
    return FileStatus(status.st_size, f"{status.st_mtime_ns}/{status.st_ctime_ns}")


def _entries(directory: Path) -> Iterator[tuple[str, os.DirEntry[str], os.stat_result]]:
    """The entries of a directory, sorted, each with the status of what it links to, if anything."""
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            try:
                yield entry.name, entry, entry.stat()
            except (FileNotFoundError, OSError):  # no target, or a loop of links
                yield entry.name, entry, entry.stat(follow_symlinks=False)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
