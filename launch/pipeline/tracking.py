"""The MLflow run of a whole pipeline, shared by the processes of its stages.

Its record lies in the pipeline's run directory (`opening.json`, `tracking.json`). The processes may
be jobs on several nodes: file locks on the shared file system keep them from opening two MLflow
runs. A server that does not answer costs seconds and a warning; what it missed is uploaded later.
"""

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from launch.errors import run_command
from launch.pipeline.config import load_run_pipeline
from launch.pipeline.state import PipelineState
from mezzotint.common.locks import file_lock
from trainer.run import RunDirectory
from trainer.tracking import tracker
from trainer.tracking.environment import tracking_from_environment
from trainer.tracking.run_log import (
    RunInfo,
    RunRecord,
    Status,
    TrackingConfig,
    read_run_record,
    record_end,
    start_record,
    write_run_record,
)

LOCK, LOCK_TIMEOUT = "opening.lock", 20.0
TAGS = {"mezzotint.kind": "pipeline"}


def open_pipeline_run(root: Path, tracking: TrackingConfig | None) -> None:
    """Start the MLflow run of a pipeline, or reopen it without the failures of earlier starts."""
    with file_lock(root / LOCK, LOCK_TIMEOUT):
        start_record(root, tracking, RunInfo(root.name, tags=TAGS))
        reset_status(root, None)
    push(root, tracking)


def mark_stage_started(root: Path, tracking: TrackingConfig | None, stage: str) -> None:
    """Record that a stage, and so the pipeline, is running. The stage itself uploads this."""
    with file_lock(root / LOCK, LOCK_TIMEOUT):
        if read_run_record(root) is None:
            start_record(root, tracking, RunInfo(root.name, tags=TAGS))
        reset_status(root, [stage])


def reset_status(root: Path, stages: Iterable[str] | None) -> None:
    """Set stages (None: all) to not ended, and the pipeline to running."""
    record = read_run_record(root)
    assert record is not None
    for stage in list(record.stages) if stages is None else stages:
        record.stages.pop(stage, None)
    record.status, record.ended = "RUNNING", None
    write_run_record(root, record)


def update_status(
    root: Path, tracking: TrackingConfig | None, ended: Mapping[str, Status] | None = None
) -> None:
    """Derive the status of the pipeline's MLflow run from its stages, and upload it.

    FINISHED when every stage is finished; FAILED or KILLED when a stage ended so for good, as
    `ended` says by stage; else RUNNING. MLflow runs that such stages left open are ended too. For
    the run directory of a single recipe, `ended` is the status of that run.
    """
    if not (root / "pipeline.yaml").is_file():
        for status in (ended or {}).values():
            end_run(root, tracking, status)
        return
    for stage, status in (ended or {}).items():
        end_run(root / stage, replace(tracking, root=root) if tracking else None, status)
    with file_lock(root / LOCK, LOCK_TIMEOUT):
        record = read_run_record(root)
        if record is None:
            return
        state = PipelineState(root)
        stages = load_run_pipeline(root).stages
        unfinished = [stage for stage in stages if state.read(stage) is None]
        statuses = record.stages | dict(ended or {})
        record.stages = {stage: statuses[stage] for stage in statuses if stage in unfinished}
        set_status(record, unfinished, root)
        write_run_record(root, record)
    push(root, tracking)


def set_status(record: RunRecord, unfinished: list[str], root: Path) -> None:
    """Set the status of a pipeline with these unfinished stages."""
    before = record.status
    record.status = "RUNNING" if unfinished else "FINISHED"
    for status in ("KILLED", "FAILED"):
        if status in record.stages.values():
            record.status = "FAILED" if status == "FAILED" else "KILLED"
    if record.status == "RUNNING":
        record.ended = None
    elif record.status != before or record.ended is None:
        record.ended = time.time()
    record.artifacts = {"page": "index.html"} if (root / "index.html").is_file() else {}


def end_run(directory: Path, tracking: TrackingConfig | None, status: Status) -> None:
    """End an MLflow run that its own processes did not end."""
    record = read_run_record(directory)
    if record is not None and record.status == "RUNNING":
        record_end(directory, status)
        push(directory, tracking)


def push(directory: Path, tracking: TrackingConfig | None) -> None:
    """Upload what is new of one run; a server that does not answer is only logged."""
    if tracking is None:
        return
    own = replace(tracking, root=None) if tracking.root == directory else tracking
    tracker.upload(RunDirectory(directory), own)


def main() -> None:
    """`python -P -m launch.pipeline.tracking ROOT STAGE FAILED|KILLED`: record a final status."""
    root, stage, word = sys.argv[1:]
    statuses: dict[str, Status] = {"FAILED": "FAILED", "KILLED": "KILLED"}
    path = Path(root)
    is_pipeline = (path / "pipeline.yaml").is_file()
    tracking = tracking_from_environment(root=path if is_pipeline else None)
    update_status(path, tracking, {stage: statuses[word]})


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    run_command(main)
