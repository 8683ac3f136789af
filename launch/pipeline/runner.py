"""Run a pipeline on this machine: stages side by side while they fit, finished ones skipped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from rich.console import Console

from launch.errors import Stopped
from launch.pipeline.config import Pipeline, TrainStage, needs, order, recipe_of, replace
from launch.pipeline.state import Ledger
from launch.pipeline.tracking import open_parent, settle
from launch.progress import bar, read_standing
from launch.train.local import link_environment, link_from_environment
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_text
from mezzotint.common.locks import run_lock
from trainer.signals import PREEMPTED
from trainer.tracking.mlflow_client import default_uri
from trainer.tracking.run_log import TrackingConfig


@dataclass
class Running:
    """A stage's live process."""

    name: str
    process: subprocess.Popen[bytes]
    cores: int
    log: Path
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Result:
    """How a pipeline run ended."""

    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: tuple[str, ...]
    cancelled: tuple[str, ...]
    seconds: float


def run(pipeline: Pipeline, runs: Path, *, redo: Iterable[str] = ()) -> Result:
    """Run every stage that is not finished with the same settings and inputs.

    Raises:
        UserError: a finished stage has other settings, or another live process holds the run.
    """
    root = runs / pipeline.name
    with run_lock(root):
        text = yaml.safe_dump(pipeline.model_dump(mode="json"), sort_keys=False)
        write_text(root / "pipeline.yaml", text)
        ledger = Ledger(root)
        for name in redo:
            forget(pipeline, ledger, name)
        skipped = tuple(name for name in order(pipeline) if finished(pipeline, ledger, name))
        if len(skipped) == len(pipeline.stages):
            return Result((), skipped, (), (), 0.0)
        link = link_from_environment(default_uri(runs), root)
        assert link is not None
        open_parent(root, link)
        runner = Runner(pipeline, runs, ledger, link, skipped)
        try:
            with leaving_in_order():
                result = runner.run()
        except (KeyboardInterrupt, Stopped):
            settle(root, link, dict.fromkeys(runner.unfinished, "KILLED"))
            raise
        settle(root, link, dict.fromkeys(result.failed, "FAILED"))
    return result


@contextmanager
def leaving_in_order() -> Iterator[None]:
    """Let SIGTERM, and a terminal that is closed, end a run as Ctrl-C does: stages save and leave.

    Raises:
        Stopped: told to leave.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise Stopped(PREEMPTED)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def settings(pipeline: Pipeline, name: str) -> dict[str, Any]:
    """A stage's settings as a plain tree; how it is scheduled is not part of them.

    Other stages stay `${NAME}`, so that a run directory can be named or moved as one likes.
    """
    stage = replace(pipeline.stages[name], pipeline.values)
    tree = stage.model_dump(mode="json")
    del tree["cores"], tree["nodes"], tree["after"]
    if isinstance(stage, TrainStage):
        tree["resolved"] = recipe_of(stage).model_dump(mode="json")
    return tree


def inputs(pipeline: Pipeline, ledger: Ledger, name: str) -> dict[str, str] | None:
    """The ids of what a stage reads; None when some of it is not there yet."""
    entries = {each: ledger.read(each) for each in needs(pipeline, name)}
    if any(entry is None for entry in entries.values()):
        return None
    return {each: entry.id for each, entry in entries.items() if entry is not None}


def finished(pipeline: Pipeline, ledger: Ledger, name: str) -> bool:
    """Whether a stage can be skipped."""
    read = inputs(pipeline, ledger, name)
    return read is not None and ledger.is_current(name, settings(pipeline, name), read)


def readers(pipeline: Pipeline, name: str) -> list[str]:
    """A stage and all that read it, in the order in which they run."""
    if name not in pipeline.stages:
        raise UserError(f"--redo {name}: no such stage; there are {', '.join(pipeline.stages)}")
    found = [name]
    for each in order(pipeline):
        if set(found) & set(needs(pipeline, each)):
            found.append(each)
    return found


def forget(pipeline: Pipeline, ledger: Ledger, name: str) -> None:
    """Move a stage's directory, and those of all that read it, aside, so that they run again."""
    for each in readers(pipeline, name):
        directory = ledger.directory(each)
        if directory.is_dir():
            directory.rename(directory.with_name(f".{each}.{time.time_ns()}"))


class Runner:
    """Starts stages as their inputs appear, and watches them."""

    def __init__(
        self,
        pipeline: Pipeline,
        runs: Path,
        ledger: Ledger,
        link: TrackingConfig,
        skipped: tuple[str, ...],
    ) -> None:
        self._pipeline, self._runs, self._ledger, self._link = pipeline, runs, ledger, link
        self._skipped = skipped
        self._cores = len(os.sched_getaffinity(0))
        self._waiting = [name for name in pipeline.stages if name not in skipped]
        self._running: list[Running] = []
        self._done: list[str] = []
        self._failed: list[str] = []
        self._cancelled: list[str] = []
        self._console = Console()

    @property
    def unfinished(self) -> list[str]:
        """Stages that have not come to an end of their own."""
        return [*self._waiting, *(running.name for running in self._running)]

    def run(self) -> Result:
        """Run to the end, or until nothing more can start."""
        started = time.monotonic()
        display = Display(self._console, self._ledger)
        try:
            with display:
                while self._waiting or self._running:
                    self._start_ready()
                    self._collect(display)
                    display.update([running.name for running in self._running])
                    time.sleep(0.2)
        finally:
            stop([running.process for running in self._running])
        return Result(
            tuple(self._done),
            self._skipped,
            tuple(self._failed),
            tuple(self._cancelled),
            time.monotonic() - started,
        )

    def _start_ready(self) -> None:
        broken = {*self._failed, *self._cancelled}
        for name in list(self._waiting):
            stage = self._pipeline.stages[name]
            if broken & set(needs(self._pipeline, name)):
                self._waiting.remove(name)
                self._cancelled.append(name)
                continue
            cores = min(stage.cores or self._cores, self._cores)
            busy = sum(running.cores for running in self._running)
            if busy + cores > self._cores or inputs(self._pipeline, self._ledger, name) is None:
                continue
            self._waiting.remove(name)
            self._running.append(self._start(name, cores))

    def _start(self, name: str, cores: int) -> Running:
        logs = self._ledger.directory(name) / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "stage.log").touch()  # its time says that the stage has started in this run
        (logs.parent / "exit_code").unlink(missing_ok=True)
        environment = {
            **os.environ,
            **link_environment(self._link),
            "OMP_NUM_THREADS": str(cores),
            "PYTHONUNBUFFERED": "1",
            "MEZZOTINT_WATCH_PARENT": "1",
        }
        root = self._ledger.root
        with (logs / "stage.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "launch.cli.main", "stage", str(root), name],
                stdin=subprocess.PIPE,  # closes when this process dies, however it dies
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return Running(name, process, cores, logs / "stage.log")

    def _collect(self, display: "Display") -> None:
        for running in list(self._running):
            code = running.process.poll()
            if code is None:
                continue
            self._running.remove(running)
            seconds = time.monotonic() - running.started
            if code == 0:
                self._done.append(running.name)
                display.say(f"{running.name}: done in {seconds:.0f} s")
            else:
                self._failed.append(running.name)
                write_text(running.log.parent.parent / "exit_code", f"{code}\n")
                display.say(f"{running.name}: failed ({code}); {running.log} ends with")
                display.say(tail(running.log))


class Display:
    """A bar per running stage on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console, ledger: Ledger, every: float = 15.0) -> None:
        self._console, self._ledger, self._every = console, ledger, every
        self._bar = bar(console) if console.is_terminal else None
        self._tasks: dict[str, Any] = {}
        self._said = time.monotonic()

    def __enter__(self) -> "Display":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """One line for people."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, names: list[str]) -> None:
        """Show how far the running stages are."""
        standings = {name: read_standing(self._ledger.directory(name)) for name in names}
        if self._bar:
            for name in set(self._tasks) - set(names):
                self._bar.remove_task(self._tasks.pop(name))
            for name, standing in standings.items():
                if name not in self._tasks:
                    self._tasks[name] = self._bar.add_task(name, total=None, note="")
                if standing:
                    self._bar.update(
                        self._tasks[name],
                        completed=standing.done,
                        total=standing.total,
                        note=standing.note,
                    )
        elif time.monotonic() - self._said > self._every:
            self._said = time.monotonic()
            for name, standing in standings.items():
                words = "starting"
                if standing:
                    words = f"{standing.phase} {standing.done:,}/{standing.total:,} {standing.note}"
                self.say(f"{name}: {words.rstrip()}")


def stop(processes: list[subprocess.Popen[bytes]], grace: float = 30.0) -> None:
    """Ask stages to leave (training saves a checkpoint), then kill what is left."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in processes:
        if process.poll() is None:
            process.kill()


def tail(path: Path, lines: int = 12) -> str:
    """The last lines of a log."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
