"""One stage of a pipeline in a process of its own: run, remember, track."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from launch.errors import Stopped
from launch.pipeline.config import Stage, TrainStage, recipe_of, resolve, started
from launch.pipeline.runner import inputs, settings
from launch.pipeline.stage_types import artifacts, execute
from launch.pipeline.state import Entry, Ledger, new_id
from launch.pipeline.tracking import resume, settle
from launch.progress import Reporter
from launch.train.local import leads, link_from_environment, train
from mezzotint.common.errors import UserError
from trainer.recipe import flatten
from trainer.run import RunDirectory
from trainer.signals import PREEMPTED
from trainer.tracking.run_log import RunInfo, Status, TrackingConfig
from trainer.tracking.tracker import Tracker

BAD_INPUT = (UserError, ValidationError)


def run_stage(root: Path, name: str) -> None:
    """Run stage `name` of the pipeline started in `root`; each process of its job calls this.

    Raises:
        UserError: no such stage, or what it reads is not finished.
    """
    pipeline, ledger = started(root), Ledger(root)
    if name not in pipeline.stages:
        stages = ", ".join(pipeline.stages)
        raise UserError(f"{name}: no such stage in {root}; there are {stages}")
    read = inputs(pipeline, ledger, name)
    if read is None:
        raise UserError(f"{name}: what it reads is not finished; run the pipeline instead")
    if os.environ.get("MEZZOTINT_WATCH_PARENT"):
        leave_with_parent()
    stage = resolve(pipeline, name, root)
    link = link_from_environment(root=root)
    if not leads():
        help_training(stage, ledger.directory(name), link)
        return
    resume(root, link, name)
    try:
        began, plain = time.monotonic(), settings(pipeline, name)
        with tracked(stage, ledger.directory(name), link, plain) as tracker:
            with Reporter(ledger.directory(name)) as reporter:
                facts = execute(stage, ledger.directory(name), link, reporter, root)
            seconds = time.monotonic() - began
            ledger.write(name, Entry(new_id(), stage.kind, plain, read, seconds, None, facts))
            if tracker:
                tracker.log(0, numbers(ledger.directory(name)))
                kept = artifacts(stage, ledger.directory(name), root)
                tracker.close("FINISHED", kept, facts)
    except BaseException as error:
        status = lasting(error)
        if status:
            settle(root, link, {name: status})
        raise
    settle(root, link)


def help_training(stage: Stage, directory: Path, link: TrackingConfig | None) -> None:
    """What the other processes of a stage's job do: they take part in training, and write nothing.

    A stage of another kind is done by one process alone.
    """
    if isinstance(stage, TrainStage):
        train(recipe_of(stage), RunDirectory(directory), link, lambda step, steps, metrics: None)


@contextmanager
def tracked(
    stage: Stage, directory: Path, link: TrackingConfig | None, plain: dict[str, object]
) -> Iterator[Tracker | None]:
    """Track a stage that has no training loop to do it, and let signals end it in order."""
    if isinstance(stage, TrainStage):
        yield None
        return
    directory.mkdir(parents=True, exist_ok=True)
    opening = RunInfo(directory.name, plain, {"mezzotint.kind": stage.kind})
    tracker = Tracker(RunDirectory(directory), link, opening, writes=True, samples=True)
    asked = (signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.signal(number, told_to_leave) for number in asked}
    try:
        yield tracker
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | Stopped)
        tracker.close("KILLED" if killed else "FAILED", {"logs": directory / "logs"})
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def told_to_leave(number: int, frame: FrameType | None) -> None:
    """A stage without checkpoints is left as it is, to be done again."""
    raise Stopped(PREEMPTED)


def lasting(error: BaseException) -> Status | None:
    """What an error makes of a stage for good; None where its job is put into the queue again."""
    queued = "SLURM_JOB_ID" in os.environ
    if isinstance(error, BAD_INPUT) or (isinstance(error, Stopped) and error.code == 2):
        return "FAILED"
    if queued:
        return None
    left = isinstance(error, KeyboardInterrupt) or (
        isinstance(error, Stopped) and error.code == PREEMPTED
    )
    return "KILLED" if left else "FAILED"


def numbers(directory: Path) -> dict[str, float]:
    """An evaluation's results, to be kept as metrics; none for other stages."""
    path = directory / "evaluation.json"
    if not path.is_file():
        return {}
    return {
        key.replace(".", "/"): float(value)
        for key, value in flatten(json.loads(path.read_text(encoding="utf-8"))).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def leave_with_parent() -> None:
    """Leave as on SIGTERM when standard input closes: the process that started this one is gone."""

    def watch() -> None:
        while os.read(0, 1):  # a buffered reader would hold a lock at shutdown
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
