"""What can go wrong around a run: signals, a second live process, a full disk."""

import fcntl
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from mezzotint.common.errors import UserError

PREEMPTED = 75
"""Exit code after a checkpoint was saved because the machine is being taken away."""


class Preemption:
    """A flag raised by SIGTERM or SIGUSR2; acted upon at the end of a step, not in the handler.

    A process that has been told to leave does not hear it twice: when the first process of a job
    is gone, SLURM tells the others again, and they may still be sending what is left to send.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Preemption":
        for number in (signal.SIGTERM, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._raise_flag)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.requested else handler)  # type: ignore[arg-type]

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


@dataclass(frozen=True)
class LockOwner:
    """The live process that holds a run directory, as far as it has written of itself."""

    host: str | None
    pid: int | None
    since: float
    """Seconds since 1970."""


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a run directory, so that two live processes never write into one.

    Raises:
        UserError: another live process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "lock"
    with path.open("a+", encoding="utf-8") as file:
        for patience in (0.2, 0.2, 0.2, None):  # `holder` looks by taking the lock for a moment
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if patience is None:
                    file.seek(0)
                    raise UserError(
                        f"{directory}: is held by another live process "
                        f"({file.read() or 'unknown'}); wait for it, stop it, or give this run "
                        "another directory"
                    ) from error
                time.sleep(patience)
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        file.flush()
        yield


def holder(directory: Path) -> LockOwner | None:
    """Who holds a run directory now; None when nobody does."""
    try:
        file = (directory / "lock").open(encoding="utf-8", errors="replace")
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


def need_space(directory: Path, needed: int) -> None:
    """Refuse to write `needed` bytes where they do not fit.

    Raises:
        UserError: fewer bytes or no inodes are free on the file system of `directory`.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise UserError(
            f"{directory}: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free; "
            "free some space or choose another runs directory"
        )
    inodes = os.statvfs(directory)
    if inodes.f_files and inodes.f_favail < 1000:
        raise UserError(f"{directory}: no inodes are left; remove files there")
