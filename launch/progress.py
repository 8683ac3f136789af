"""What a running stage tells whoever watches: a file for other processes, a bar or plain lines."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mezzotint.common.files import write_json

FILE = "progress.json"


@dataclass(frozen=True)
class ProgressState:
    """How far a stage is: `done` of `total` in the phase it is in, and a few words.

    Times are seconds; `time` since 1970. What is not known yet is None.
    """

    phase: str
    done: int
    total: int
    note: str
    time: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the last interval of training: losses, speeds."""
    seconds_left: float | None = None
    """Of this phase, at the mean speed since its first report."""


def read_standing(directory: Path) -> ProgressState | None:
    """The last standing a stage has written; None where there is none that can be read."""
    try:
        standing = ProgressState(**json.loads((directory / FILE).read_text(encoding="utf-8")))
        counts = (standing.done, standing.total, standing.time)
        return standing if all(isinstance(count, int | float) for count in counts) else None
    except (OSError, ValueError, TypeError):
        return None


class Reporter:
    """Shows progress: a bar or a line now and then, and `progress.json` for other processes."""

    def __init__(self, directory: Path | None, *, shows: bool = True, every: float = 10.0) -> None:
        self._directory = directory
        self._shows = shows
        self._every = every
        self._written = self._printed = 0.0
        self._first: tuple[str, int, float] | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if shows and sys.stdout.isatty():
            self._bar = bar(Console())

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Training: `step` of `steps` updates are done."""
        self.show("train", step, steps, describe(metrics), metrics)

    def counted(self, phase: str) -> Callable[[int, int], None]:
        """A callback (done, total) for work of one phase."""
        return lambda done, total: self.show(phase, done, total, "")

    def phases(self, phase: str, done: int, total: int) -> None:
        """Work in several phases."""
        self.show(phase, done, total, "")

    def show(
        self,
        phase: str,
        done: int,
        total: int,
        note: str,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Tell that `done` of `total` is reached."""
        now, last = time.time(), done >= total
        left = self._seconds_left(phase, done, total, now, metrics or {})
        if self._directory and (last or now - self._written > 0.5):
            self._written = now
            self._directory.mkdir(parents=True, exist_ok=True)
            standing = ProgressState(phase, done, total, note, now, dict(metrics or {}), left)
            write_json(self._directory / FILE, asdict(standing))
        if self._bar:
            if self._task is None:
                self._task = self._bar.add_task(phase, total=total, note=note)
            self._bar.update(self._task, description=phase, completed=done, total=total, note=note)
        elif self._shows and (last or now - self._printed > self._every):
            self._printed = now
            sys.stdout.write(f"{phase} {done:,}/{total:,} {note}".rstrip() + "\n")
            sys.stdout.flush()

    def _seconds_left(
        self, phase: str, done: int, total: int, now: float, metrics: Mapping[str, float]
    ) -> float | None:
        if self._first is None or self._first[0] != phase or self._first[1] > done:
            self._first = (phase, done, now)
        _, since_done, since = self._first
        if done > since_done and now > since:
            return (total - done) * (now - since) / (done - since_done)
        speed = metrics.get("steps_per_second")
        return (total - done) / speed if speed else None


def bar(console: Console) -> Progress:
    """The look of every progress bar."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def describe(metrics: Mapping[str, float]) -> str:
    """Losses and speed, in a few words."""
    words = [
        f"{name.removeprefix('loss/')} {value:.4g}"
        for name, value in metrics.items()
        if name.startswith("loss/")
    ]
    if "images_per_second" in metrics:
        words.append(f"{metrics['images_per_second']:.0f} images/s")
    return "  ".join(words)
