"""Progress of running work: a file for other processes, and a progress bar or plain lines."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter
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

from mezzotint.common.files import finite, write_json

PROGRESS_FILE = "progress.json"
ProgressCallback = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class ProgressState:
    """Progress of a stage: `done` of `total` in its current phase. None: not known yet."""

    phase: str
    done: int
    total: int
    note: str
    time: float
    """Seconds since 1970."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the last logging interval of training: losses, speeds."""
    seconds_left: float | None = None
    """Of this phase, at the mean speed since its first report."""


_STATE = TypeAdapter(ProgressState)


def read_progress(directory: Path) -> ProgressState | None:
    """The last reported progress of a stage; None if there is no readable report."""
    try:
        return _STATE.validate_json((directory / PROGRESS_FILE).read_bytes())
    except (OSError, ValueError):
        return None


class Reporter:
    """Shows a progress bar, or a line every 10 seconds, and writes `progress.json`."""

    def __init__(self, directory: Path | None, *, shows: bool = True) -> None:
        self._directory = directory
        self._shows = shows
        self._written = self._printed = 0.0
        self._first: tuple[str, int, float] | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if shows and sys.stdout.isatty():
            self._bar = progress_bar(Console())

    def __enter__(self) -> "Reporter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Report that `step` of `steps` training steps are done."""
        self.report("train", step, steps, format_metrics(metrics), metrics)

    def callback(self, phase: str) -> ProgressCallback:
        return lambda done, total: self.report(phase, done, total)

    def report(
        self,
        phase: str,
        done: int,
        total: int,
        note: str = "",
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        now, last = time.time(), done >= total
        left = self._seconds_left(phase, done, total, now, metrics or {})
        if self._directory and (last or now - self._written > 0.5):
            self._written = now
            self._directory.mkdir(parents=True, exist_ok=True)
            state = ProgressState(phase, done, total, note, now, finite(metrics or {}), left)
            write_json(self._directory / PROGRESS_FILE, asdict(state))
        if self._bar:
            if self._task is None:
                self._task = self._bar.add_task(phase, total=total, note=note)
            self._bar.update(self._task, description=phase, completed=done, total=total, note=note)
        elif self._shows and (last or now - self._printed > 10.0):
            self._printed = now
            sys.stdout.write(f"{phase} {done:,}/{total:,} {note}".rstrip() + "\n")
            sys.stdout.flush()

    def _seconds_left(
        self, phase: str, done: int, total: int, now: float, metrics: Mapping[str, float]
    ) -> float | None:
        if self._first is None or self._first[0] != phase or self._first[1] > done:
            self._first = (phase, done, now)
        _, first_done, first_time = self._first
        if done > first_done and now > first_time:
            return (total - done) * (now - first_time) / (done - first_done)
        speed = metrics.get("steps_per_second")
        return (total - done) / speed if speed else None


def progress_bar(console: Console) -> Progress:
    """The layout of every progress bar."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Losses and speed on one line."""
    parts = [
        f"{name.removeprefix('loss/')} {value:.4g}"
        for name, value in metrics.items()
        if name.startswith("loss/")
    ]
    if "images_per_second" in metrics:
        parts.append(f"{format_rate(metrics['images_per_second'])} images/s")
    return "  ".join(parts)


def format_rate(rate: float) -> str:
    """A speed: two digits below 10, since large models take seconds per image."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
