"""One stage of a pipeline in a process of its own: run, remember, track."""

import json
import os
import signal
import threading
import time
from pathlib import Path

from launch.errors import LaunchError
from launch.ledger import Entry, Ledger, new_id
from launch.pipeline import Stage, TrainStage, resolve, started
from launch.progress import Reporter
from launch.runner import inputs, settings
from launch.stages import artifacts, execute
from launch.training import link_from_environment
from trainer.recipe import flatten
from trainer.run import RunDirectory
from trainer.tracking import Opening, Record, track_once


def run_stage(root: Path, name: str) -> None:
    """Run stage `name` of the pipeline started in `root`.

    Raises:
        LaunchError: no such stage, or what it reads is not finished.
    """
    pipeline, ledger = started(root), Ledger(root)
    if name not in pipeline.stages:
        stages = ", ".join(pipeline.stages)
        raise LaunchError(f"{name}: no such stage in {root}; there are {stages}")
    read = inputs(pipeline, ledger, name)
    if read is None:
        raise LaunchError(f"{name}: what it reads is not finished; run the pipeline instead")
    if os.environ.get("MEZZOTINT_WATCH_PARENT"):
        leave_with_parent()
    stage = resolve(pipeline, name, root)
    directory, link = ledger.directory(name), link_from_environment()
    began = time.monotonic()
    with Reporter(directory) as reporter:
        facts = execute(stage, directory, link, reporter, root)
    seconds = time.monotonic() - began
    plain = settings(pipeline, name)
    entry = Entry(new_id(), stage.kind, plain, read, seconds, None, facts)
    ledger.write(name, entry)
    if isinstance(stage, TrainStage):
        return
    record(stage, directory)
    opening = Opening(
        name,
        {**entry.settings, **facts},
        {"mezzotint.kind": stage.kind},
        started=time.time() - seconds,
    )
    track_once(RunDirectory(directory), link, opening, artifacts(stage, directory, root))


def record(stage: Stage, directory: Path) -> None:
    """Keep an evaluation's numbers as metrics."""
    path = directory / "evaluation.json"
    if not path.is_file():
        return
    numbers = {
        key.replace(".", "/"): float(value)
        for key, value in flatten(json.loads(path.read_text(encoding="utf-8"))).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    Record(directory / "metrics.jsonl").append(0, numbers)


def leave_with_parent() -> None:
    """Leave as on SIGTERM when standard input closes: the process that started this one is gone."""

    def watch() -> None:
        while os.read(0, 1):  # a buffered reader would hold a lock at shutdown
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
