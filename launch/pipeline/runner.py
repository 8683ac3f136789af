"""Run a pipeline on this machine: stages in parallel while they fit, finished ones skipped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from rich.console import Console

from launch.errors import Stopped
from launch.pipeline.config import (
    Pipeline,
    TrainStage,
    dependencies,
    stage_order,
    stage_recipe,
    stated,
    substitute,
)
from launch.pipeline.state import PipelineState
from launch.pipeline.tracking import open_pipeline_run, update_status
from launch.progress import progress_bar, read_progress
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_text
from mezzotint.common.locks import run_lock
from trainer.signals import PREEMPTED, handle_signals
from trainer.tracking.address import default_uri
from trainer.tracking.environment import tracking_environment, tracking_from_environment
from trainer.tracking.run_log import TrackingConfig


@dataclass
class RunningStage:
    """A stage and its live process."""

    name: str
    process: subprocess.Popen[bytes]
    cores: int
    log: Path
    started: float = field(default_factory=time.monotonic)


@dataclass
class PipelineResult:
    """How a pipeline run ended: names of stages, and seconds in all."""

    skipped: list[str]
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_pipeline(pipeline: Pipeline, runs: Path, *, redo: Iterable[str] = ()) -> PipelineResult:
    """Run every stage that is not finished with the same settings and inputs.

    Raises:
        UserError: a finished stage has other settings, or another live process uses the run.
    """
    root = runs / pipeline.name
    with run_lock(root):
        text = yaml.safe_dump(stated(pipeline), sort_keys=False)
        write_text(root / "pipeline.yaml", text)
        state = PipelineState(root)
        for name in redo:
            archive_stage(pipeline, state, name)
        order = stage_order(pipeline)
        result = PipelineResult([name for name in order if is_up_to_date(pipeline, state, name)])
        if len(result.skipped) == len(pipeline.stages):
            return result
        tracking = tracking_from_environment(default_uri(runs), root)
        assert tracking is not None
        open_pipeline_run(root, tracking)
        runner = Runner(pipeline, state, tracking, result)
        try:
            with handle_signals(stop, signal.SIGTERM, signal.SIGHUP):
                runner.run()
        except (KeyboardInterrupt, Stopped):
            update_status(root, tracking, dict.fromkeys(runner.unfinished, "KILLED"))
            raise
        update_status(root, tracking, dict.fromkeys(result.failed, "FAILED"))
    return result


def stop(number: int, frame: FrameType | None) -> None:
    """End a pipeline or a stage on a signal like on Ctrl-C: training saves a checkpoint."""
    raise Stopped(PREEMPTED)


def stage_settings(pipeline: Pipeline, name: str) -> dict[str, Any]:
    """A stage's settings as a plain tree, without those of its scheduling.

    References to stages stay `${NAME}`, so that a run directory can be renamed or moved.
    """
    stage = substitute(pipeline.stages[name], pipeline.values)
    tree = stage.model_dump(mode="json")
    del tree["cores"], tree["nodes"], tree["after"]
    if isinstance(stage, TrainStage):
        tree["resolved"] = stage_recipe(stage).model_dump(mode="json")
    return tree


def input_ids(pipeline: Pipeline, state: PipelineState, name: str) -> dict[str, str] | None:
    """The output ids of a stage's dependencies; None while one of them is not finished."""
    records = {each: state.read(each) for each in dependencies(pipeline, name)}
    if any(record is None for record in records.values()):
        return None
    return {each: record.id for each, record in records.items() if record is not None}


def is_up_to_date(pipeline: Pipeline, state: PipelineState, name: str) -> bool:
    """Whether a stage can be skipped."""
    inputs = input_ids(pipeline, state, name)
    return inputs is not None and state.is_current(name, stage_settings(pipeline, name), inputs)


def downstream_stages(pipeline: Pipeline, name: str) -> list[str]:
    """A stage and all that depend on it, in topological order."""
    if name not in pipeline.stages:
        raise UserError(f"--redo {name}: no such stage; there are {', '.join(pipeline.stages)}")
    found = [name]
    for each in stage_order(pipeline):
        if set(found) & set(dependencies(pipeline, each)):
            found.append(each)
    return found


def archive_stage(pipeline: Pipeline, state: PipelineState, name: str) -> None:
    """Rename the directories of a stage and its downstream stages, so that they run again."""
    for each in downstream_stages(pipeline, name):
        directory = state.directory(each)
        if directory.is_dir():
            directory.rename(directory.with_name(f".{each}.{time.time_ns()}"))


class Runner:
    """Starts stages as soon as their inputs are finished, and watches them."""

    def __init__(
        self,
        pipeline: Pipeline,
        state: PipelineState,
        tracking: TrackingConfig,
        result: PipelineResult,
    ) -> None:
        self._pipeline, self._state, self._tracking = pipeline, state, tracking
        self._result = result
        self._cores = len(os.sched_getaffinity(0))
        self._waiting = [name for name in pipeline.stages if name not in result.skipped]
        self._running: list[RunningStage] = []

    @property
    def unfinished(self) -> list[str]:
        return [*self._waiting, *(running.name for running in self._running)]

    def run(self) -> None:
        """Run until nothing more can start; fills in the result."""
        started = time.monotonic()
        display = ProgressDisplay(Console(), self._state)
        try:
            with display.bar or nullcontext():
                while self._waiting or self._running:
                    self._start_ready()
                    self._collect(display)
                    display.update([running.name for running in self._running])
                    time.sleep(0.2)
        finally:
            terminate([running.process for running in self._running])
        self._result.seconds = time.monotonic() - started

    def _start_ready(self) -> None:
        broken = {*self._result.failed, *self._result.cancelled}
        for name in list(self._waiting):
            stage = self._pipeline.stages[name]
            if broken & set(dependencies(self._pipeline, name)):
                self._waiting.remove(name)
                self._result.cancelled.append(name)
                continue
            cores = min(stage.cores or self._cores, self._cores)
            busy = sum(running.cores for running in self._running)
            if busy + cores > self._cores or input_ids(self._pipeline, self._state, name) is None:
                continue
            self._waiting.remove(name)
            self._running.append(self._start(name, cores))

    def _start(self, name: str, cores: int) -> RunningStage:
        path = self._state.directory(name) / "logs" / "stage.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()  # its modification time says that the stage has started in this run
        (self._state.directory(name) / "exit_code").unlink(missing_ok=True)
        environment = {
            **os.environ,
            **tracking_environment(self._tracking),
            "OMP_NUM_THREADS": str(cores),
            "PYTHONUNBUFFERED": "1",
            "MEZZOTINT_WATCH_PARENT": "1",
        }
        command = [sys.executable, "-P", "-m", "launch.cli.main", "stage"]
        with path.open("ab") as log:
            process = subprocess.Popen(
                [*command, str(self._state.root), name],
                stdin=subprocess.PIPE,  # closes when this process dies, however it dies
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return RunningStage(name, process, cores, path)

    def _collect(self, display: "ProgressDisplay") -> None:
        for running in list(self._running):
            code = running.process.poll()
            if code is None:
                continue
            self._running.remove(running)
            seconds = time.monotonic() - running.started
            if code == 0:
                self._result.done.append(running.name)
                display.print(f"{running.name}: done in {seconds:.0f} s")
            else:
                self._result.failed.append(running.name)
                write_text(self._state.directory(running.name) / "exit_code", f"{code}\n")
                display.print(f"{running.name}: failed ({code}); {running.log} ends with")
                text = running.log.read_text(encoding="utf-8", errors="replace")
                display.print("\n".join(f"  {line}" for line in text.splitlines()[-12:]))


class ProgressDisplay:
    """A progress bar per running stage on a terminal; else a line every 15 seconds."""

    def __init__(self, console: Console, state: PipelineState) -> None:
        self._console, self._state = console, state
        self.bar = progress_bar(console) if console.is_terminal else None
        self._tasks: dict[str, Any] = {}
        self._printed = time.monotonic()

    def print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, names: list[str]) -> None:
        states = {name: read_progress(self._state.directory(name)) for name in names}
        if self.bar:
            for name in set(self._tasks) - set(names):
                self.bar.remove_task(self._tasks.pop(name))
            for name, state in states.items():
                if name not in self._tasks:
                    self._tasks[name] = self.bar.add_task(name, total=None, note="")
                if state:
                    self.bar.update(
                        self._tasks[name], completed=state.done, total=state.total, note=state.note
                    )
        elif time.monotonic() - self._printed > 15.0:
            self._printed = time.monotonic()
            for name, state in states.items():
                text = "starting"
                if state:
                    text = f"{state.phase} {state.done:,}/{state.total:,} {state.note}"
                self.print(f"{name}: {text.rstrip()}")


def terminate(processes: list[subprocess.Popen[bytes]], grace: float = 30.0) -> None:
    """Send SIGTERM (training saves a checkpoint), and SIGKILL after `grace` seconds."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in processes:
        if process.poll() is None:
            process.kill()
