"""What the tests of `status` share: what SLURM says of a pipeline, and what lies on disk."""

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
  words: {kind: tokenizer, vocab: 300}
  train: {kind: train, recipe: gone.yaml, set: {data.text.tokenizer: "${words}/model"}}
  judge: {kind: evaluate, after: [train]}
"""
NEEDS = {"words": (), "train": ("words",), "judge": ("train",)}


def said(stage: str, state: str, **facts: object) -> JobState:
    """SLURM's word on the job of a stage."""
    number = [*NEEDS].index(stage) + 1
    values = {"id": number, "name": f"both/{stage}", "state": state, "submitted": SUBMITTED}
    return JobState(**{**values, **facts})


def facts(root: Path, *words: JobState, asked: bool = True) -> RunStatus:
    """How a run stands, told what SLURM says."""
    return run_status(root, {word.id: word for word in words} if asked else None, NOW, "is down")


def states(run: RunStatus) -> dict[str, str]:
    return {stage.stage: stage.state for stage in run.stages}


def reasons(run: RunStatus) -> dict[str, str | None]:
    return {stage.stage: stage.reason for stage in run.stages}


def finish(root: Path, stage: str) -> None:
    write_json(root / stage / "stage.json", {"id": "1", "kind": "train"})


def progress(path: Path, done: int, total: int, **more: object) -> None:
    standing = {"phase": "train", "done": done, "total": total, "note": "", "time": NOW - 5}
    write_json(path / "progress.json", {**standing, **more})
