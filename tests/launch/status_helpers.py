"""Helpers of the tests of `status`: SLURM's states of a pipeline's jobs, and files on disk."""

import time
from pathlib import Path

from launch.slurm.client import JobState
from launch.status.run import RunStatus, run_status
from mezzotint.common.files import write_json

NOW = float(round(time.time()))
SUBMITTED = NOW - 1000
PIPELINE = """\
name: both
stages:
  tokenizer: {kind: tokenizer, vocab: 300}
  train: {kind: train, recipe: gone.yaml, set: {data.text.tokenizer: "${tokenizer}/model"}}
  evaluate: {kind: evaluate, after: [train]}
"""
NEEDS = {"tokenizer": (), "train": ("tokenizer",), "evaluate": ("train",)}


def job_state(stage: str, state: str, **facts: object) -> JobState:
    """SLURM's state of a stage's job."""
    number = [*NEEDS].index(stage) + 1
    values = {"id": number, "name": f"both/{stage}", "state": state, "submitted": SUBMITTED}
    return JobState(**{**values, **facts})


def status(root: Path, *jobs: JobState, answered: bool = True) -> RunStatus:
    """The status of a run, given SLURM's states of its jobs."""
    return run_status(root, {job.id: job for job in jobs} if answered else None, NOW, "is down")


def states(run: RunStatus) -> dict[str, str]:
    return {stage.stage: stage.state for stage in run.stages}


def reasons(run: RunStatus) -> dict[str, str | None]:
    return {stage.stage: stage.reason for stage in run.stages}


def finish(root: Path, stage: str) -> None:
    write_json(root / stage / "stage.json", {"id": "1", "kind": "train"})


def progress(path: Path, done: int, total: int, **more: object) -> None:
    report = {"phase": "train", "done": done, "total": total, "note": "", "time": NOW - 5}
    write_json(path / "progress.json", {**report, **more})
