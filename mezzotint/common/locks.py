"""Locks between processes, on all nodes that share the file system; they end with their holder."""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mezzotint.common.errors import UserError

_RETRY_SECONDS = 0.6
"""Seconds to retry, because `lock_owner` takes the lock for a moment."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
RUN, TRAINING = "lock", "training.lock"
"""Lock files of a run directory: of the process that runs it on this machine, and of the training
processes, also of a SLURM job."""

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, wait: float | None = None) -> Iterator[IO[str]]:
    """Hold an exclusive lock on a file, which is created if missing and yielded open.

    Its content is not touched. Another holder is waited for `wait` seconds, or for ever.

    Raises:
        TimeoutError: Another process or thread holds it for longer.
    """
    deadline = None if wait is None else time.monotonic() + wait
    with path.open("a+", encoding="utf-8", errors="replace") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(f"{path}: another process holds this lock") from error
                time.sleep(0.05)
        try:
            yield file
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a forked child may have the file open still


@dataclass(frozen=True)
class LockOwner:
    """The live process that holds a run directory; host and pid are None if not yet written."""

    host: str | None
    pid: int | None
    since: float
    """Seconds since 1970."""


@contextmanager
def run_lock(
    directory: Path, name: str = RUN, wait: float = _RETRY_SECONDS
) -> Iterator[IO[str] | None]:
    """Hold a run directory, so that two live processes never write into one.

    Yields the open lock file; None where the file system has no locks. A child process that
    inherits the file holds the lock too, until both have ended.

    Raises:
        UserError: Another live process holds it for longer than `wait` seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    with ExitStack() as stack:
        try:
            file = stack.enter_context(file_lock(path, wait))
        except TimeoutError as error:
            owner = path.read_text(encoding="utf-8", errors="replace") or "unknown"
            raise UserError(
                f"{directory}: is held by another live process ({owner}); wait for it, stop it, or "
                "give this run another directory"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "%s: its file system has no locks: never start this run twice at once", directory
            )
            yield None
            return
        write_owner(file)
        yield file


def write_owner(file: IO[str], ranks: Sequence[int] = ()) -> None:
    """Write into a lock file who holds it: this process, and those that it has started."""
    file.truncate(0)
    more = {"ranks": list(ranks)} if ranks else {}
    json.dump({"host": socket.gethostname(), "pid": os.getpid(), **more}, file)
    file.flush()


def lock_owner(directory: Path) -> LockOwner | None:
    """The live process that holds a run directory now, if any."""
    try:
        file = (directory / RUN).open(encoding="utf-8", errors="replace")
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            since = os.fstat(file.fileno()).st_mtime
        except OSError:  # a file system without locks
            return None
        else:
            return None
        try:
            written = json.loads(file.read())
            return LockOwner(str(written["host"]), int(written["pid"]), since)
        except (ValueError, TypeError, KeyError):
            return LockOwner(None, None, since)
