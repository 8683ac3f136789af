"""One stage of a pipeline in its own process: run it, record it, track it."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from evaluation.result import FILE, EvaluationResult
from launch.errors import BAD_INPUT, Stopped
from launch.pipeline.config import (
    EvaluateStage,
    StageConfig,
    TrainStage,
    load_run_pipeline,
    resolve_stage,
    stage_recipe,
)
from launch.pipeline.runner import input_ids, stage_settings, stop
from launch.pipeline.stage_types import evaluate, execute_stage, stage_artifacts
from launch.pipeline.state import PipelineState, StageRecord, new_id
from launch.pipeline.tracking import mark_stage_started, update_status
from launch.progress import Reporter
from launch.train.local import is_main_process, train
from mezzotint.common.errors import UserError
from trainer.run import RunDirectory
from trainer.signals import PREEMPTED, handle_signals
from trainer.tracking.environment import tracking_from_environment
from trainer.tracking.run_log import RunInfo, Status, TrackingConfig
from trainer.tracking.tracker import Tracker


def run_stage(root: Path, name: str) -> None:
    """Run stage `name` of the pipeline run in `root`; each process of its job calls this.

    Raises:
        UserError: no such stage, or its dependencies are not finished.
    """
    pipeline, state = load_run_pipeline(root), PipelineState(root)
    if name not in pipeline.stages:
        stages = ", ".join(pipeline.stages)
        raise UserError(f"{name}: no such stage in {root}; there are {stages}")
    inputs = input_ids(pipeline, state, name)
    if inputs is None:
        raise UserError(f"{name}: its dependencies are not finished; run the pipeline instead")
    if os.environ.get("MEZZOTINT_WATCH_PARENT"):
        exit_with_parent()
    stage, directory = resolve_stage(pipeline, name, root), state.directory(name)
    tracking = tracking_from_environment(root=root)
    if not is_main_process():
        join_stage(stage, directory, tracking)
        return
    mark_stage_started(root, tracking, name)
    try:
        began, settings = time.monotonic(), stage_settings(pipeline, name)
        with tracked_stage(stage, directory, tracking, settings) as tracker:
            with Reporter(directory) as reporter:
                facts = execute_stage(stage, directory, tracking, reporter, root)
            seconds = time.monotonic() - began
            record = StageRecord(new_id(), stage.kind, settings, inputs, seconds, None, facts)
            state.write(name, record)
            if tracker:
                result = directory / FILE
                if result.is_file():
                    tracker.log(0, EvaluationResult.read(result).numbers())
                tracker.close("FINISHED", stage_artifacts(stage, directory, root), facts)
    except BaseException as error:
        status = final_status(error)
        if status:
            update_status(root, tracking, {name: status})
        raise
    update_status(root, tracking)


def join_stage(stage: StageConfig, directory: Path, tracking: TrackingConfig | None) -> None:
    """Take part in a stage as one of the other ranks of a job; most stages need one process."""
    if isinstance(stage, TrainStage):
        run = RunDirectory(directory)
        train(stage_recipe(stage), run, tracking, lambda step, steps, metrics: None)
    elif isinstance(stage, EvaluateStage):
        evaluate(stage, directory, Reporter(None, shows=False))


@contextmanager
def tracked_stage(
    stage: StageConfig,
    directory: Path,
    tracking: TrackingConfig | None,
    settings: dict[str, object],
) -> Iterator[Tracker | None]:
    """Track a stage without a training loop; signals end it and its MLflow run."""
    if isinstance(stage, TrainStage):
        yield None
        return
    directory.mkdir(parents=True, exist_ok=True)
    info = RunInfo(directory.name, settings, {"mezzotint.kind": stage.kind})
    tracker = Tracker(RunDirectory(directory), tracking, info, writes=True, samples=True)
    with handle_signals(stop, signal.SIGTERM, signal.SIGUSR2):
        try:
            yield tracker
        except BaseException as error:
            logs = {"logs": directory / "logs"}
            if isinstance(error, KeyboardInterrupt | Stopped):
                tracker.close("KILLED", logs)
            else:
                tracker.close("FAILED", logs, error=error)
            raise


def final_status(error: BaseException) -> Status | None:
    """Final status of a stage after an error; None if its job will be requeued."""
    code = error.code if isinstance(error, Stopped) else None
    if isinstance(error, UserError | ValidationError) or code == BAD_INPUT:
        return "FAILED"
    if "SLURM_JOB_ID" in os.environ:
        return None
    return "KILLED" if isinstance(error, KeyboardInterrupt) or code == PREEMPTED else "FAILED"


def exit_with_parent() -> None:
    """Send SIGTERM to this process when its standard input closes: the parent process has died."""

    def watch() -> None:
        while os.read(0, 1):  # a buffered reader would hold a lock at shutdown
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
