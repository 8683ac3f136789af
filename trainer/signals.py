"""Preemption by signals."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PREEMPTED = 75
"""Exit code after a checkpoint was saved because the machine is being taken away."""


@contextmanager
def handle_signals(
    handler: Callable[[int, FrameType | None], object], *numbers: int
) -> Iterator[None]:
    """Call `handler` on these signals."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class Preemption:
    """A flag raised by SIGTERM or SIGUSR2; acted upon at the end of a step, not in the handler.

    After a preempted run, later signals are ignored: SLURM signals the other processes of a job
    again when the first one has ended, and they may still be uploading.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Preemption":
        for number in (signal.SIGTERM, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._raise_flag)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.requested else handler)  # type: ignore[arg-type]

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
