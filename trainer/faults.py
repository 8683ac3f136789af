"""What can go wrong around a run: signals, a second live process, a full disk."""

import fcntl
import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

from trainer.errors import TrainError

PREEMPTED = 75
"""Exit code after a checkpoint was saved because the machine is being taken away."""


class Preemption:
    """A flag raised by SIGTERM or SIGUSR2; acted upon at the end of a step, not in the handler."""

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
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a run directory, so that two live processes never write into one.

    Raises:
        TrainError: another live process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise TrainError(
                f"{directory}: is held by another live process ({file.read() or 'unknown'}); "
                "wait for it, stop it, or give this run another directory"
            ) from error
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        file.flush()
        yield


def need_space(directory: Path, needed: int) -> None:
    """Refuse to write `needed` bytes where they do not fit.

    Raises:
        TrainError: fewer bytes or no inodes are free on the file system of `directory`.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise TrainError(
            f"{directory}: {needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free; "
            "free some space or choose another runs directory"
        )
    inodes = os.statvfs(directory)
    if inodes.f_files and inodes.f_favail < 1000:
        raise TrainError(f"{directory}: no inodes are left; remove files there")
