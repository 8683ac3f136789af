"""SHA-256 digests of this node's files, computed once while a file stays as it is.

A record belongs to a state of a file: device, inode, size and the times of its last changes. The
time of the inode's change cannot be set by a program, so a file that is rewritten in place has no
record, whatever its size and modification time. What a record cannot show is a bit that the disk
itself lost.
"""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from mezzotint.common import files
from mezzotint.common.digests import sha256
from mezzotint.common.locks import file_lock

_log = logging.getLogger(__name__)

_SETTLED_SECONDS = 2.0
"""A file may change twice within the resolution of its times, so younger states are not kept."""


class FileState(NamedTuple):
    """Equal states mean equal contents, once the times lie in the past."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    @property
    def settled(self) -> bool:
        return abs(time.time() - max(self.mtime_ns, self.ctime_ns) / 1e9) > _SETTLED_SECONDS


class _Record(NamedTuple):
    digest: str
    time: float
    """When the file was read, in seconds since 1970."""


class DigestRecords:
    """Digests by state, in a directory that the processes of a node share.

    Where the directory cannot be written, every process computes the digests itself.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known: dict[FileState, _Record] = {}
        self._writable = True

    def of(self, file: int, since: float = 0.0) -> str:
        """The digest of an open file, which is read only if its state has no record.

        A record from before `since`, in seconds since 1970, does not count.

        Raises:
            OSError: It cannot be read.
        """
        found = self.find(FileState.of(os.fstat(file)), since)
        if found is not None:
            return found
        with self._locked(FileState.of(os.fstat(file)), wait=None):
            return self.find(FileState.of(os.fstat(file)), since) or self._compute(file)

    def prepare(self, path: Path) -> None:
        """Compute the digest of a file that has no record, unless a process does so already.

        Raises:
            OSError: It cannot be read.
            TimeoutError: Another process computes it.
        """
        file = os.open(path, os.O_RDONLY)
        try:
            state = FileState.of(os.fstat(file))
            if self.find(state) is None:
                with self._locked(state, wait=0):
                    self._compute(file)
        finally:
            os.close(file)

    def recompute(self, path: Path) -> str:
        """The digest of a file, read also if its state has a record.

        Raises:
            OSError: It cannot be read.
        """
        file = os.open(path, os.O_RDONLY)
        try:
            return self._compute(file)
        finally:
            os.close(file)

    def find(self, state: FileState, since: float = 0.0) -> str | None:
        """The digest of a state that was recorded at the time `since` or later."""
        if state not in self._known or self._known[state].time < since:
            try:
                with self._path(state).open(encoding="utf-8") as file:
                    found = _Record(file.read(), os.fstat(file.fileno()).st_mtime)
            except (OSError, UnicodeDecodeError):
                return None
            self._known[state] = found
        record = self._known[state]
        return record.digest if record.time >= since else None

    def keep(self, state: FileState, digest: str) -> None:
        """Record the digest of a state."""
        self._known[state] = _Record(digest, time.time())
        path = self._path(state)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, digest)
        except OSError as error:
            self._cannot_write(error)

    def _compute(self, file: int) -> str:
        while True:
            before = FileState.of(os.fstat(file))
            with open(os.dup(file), "rb") as content:
                content.seek(0)
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            if FileState.of(os.fstat(file)) == before:
                break
        if before.settled:
            self.keep(before, digest)
        return digest

    @contextmanager
    def _locked(self, state: FileState, wait: float | None) -> Iterator[None]:
        """Keep the other processes of the node from reading the same file meanwhile."""
        path = self._path(state).with_suffix(".lock")
        with ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(file_lock(path, wait))
                stack.callback(path.unlink, missing_ok=True)
            except TimeoutError:
                raise
            except OSError as error:
                self._cannot_write(error)
            yield

    def _path(self, state: FileState) -> Path:
        # nodes that share a file system and the records may number its devices differently
        name = sha256(" ".join(map(str, state[1:])))
        return self.directory / name[:2] / name

    def _cannot_write(self, error: OSError) -> None:
        if self._writable:
            self._writable = False
            _log.warning(
                "%s: digests of shards cannot be kept here (%s), so every process reads every "
                "shard once more; set MEZZOTINT_CACHE or data.cache to a writable directory",
                *(self.directory, error),
            )
