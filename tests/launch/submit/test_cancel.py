"""`mezzotint cancel` without SLURM; with SLURM: tests/integration."""

import json
import os
import time
from pathlib import Path

import pytest

from launch.slurm import client
from launch.slurm.client import JobState
from launch.slurm.config import Cluster
from launch.slurm.records import Job, Submission
from launch.submit import cancel
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_json
from mezzotint.common.locks import run_lock

PIPELINE = """\
name: both
stages:
  tokenizer: {kind: tokenizer}
  train: {kind: train, after: [tokenizer]}
  evaluate: {kind: evaluate, after: [train]}
  aside: {kind: tokenizer}
"""
STAGES = ("tokenizer", "train", "evaluate", "aside")


@pytest.fixture
def root(tmp_path) -> Path:
    """A submitted pipeline."""
    path = tmp_path / "runs" / "both"
    path.mkdir(parents=True)
    (path / "pipeline.yaml").write_text(PIPELINE)
    jobs = {
        name: Job(number, name, f"both/{name}", time.time(), 1, 1)
        for number, name in enumerate(STAGES, start=1)
    }
    Submission("both", Cluster(name="lab", shared="/tmp", scratch="/tmp"), jobs).write(path)
    return path


@pytest.fixture
def live(monkeypatch) -> None:
    """All of its jobs are pending."""
    waiting = {
        number: JobState(number, f"both/{name}", "PENDING", submitted=time.time())
        for number, name in enumerate(STAGES, start=1)
    }
    monkeypatch.setattr(client, "job_states", lambda ids: waiting)


def marks(root: Path) -> set[str]:
    return {path.parent.name for path in root.glob("*/cancelled")}


def test_a_stage_is_cancelled_with_those_that_wait_for_it_marks_first(root, live, monkeypatch):
    seen = []
    monkeypatch.setattr(client, "cancel_jobs", lambda ids: seen.append((sorted(ids), marks(root))))
    jobs = cancel.cancel(root, "train")
    assert [each.stage for each in jobs] == ["train", "evaluate"]
    assert seen == [([2, 3], {"train", "evaluate"})]
    assert "train: job 2 cancelled, was pending" in cancel.to_text(jobs, "both")


def test_marks_are_removed_when_slurm_refuses(root, live, monkeypatch):
    def refuse(ids):
        raise UserError("scancel: access denied")

    monkeypatch.setattr(client, "cancel_jobs", refuse)
    with pytest.raises(UserError, match="access denied"):
        cancel.cancel(root, None)
    assert marks(root) == set()


def test_without_live_jobs_it_succeeds(mezzotint, root):
    for name in STAGES:
        (root / name).mkdir()
        write_json(root / name / "stage.json", {"id": "1"})
    outcome = mezzotint("cancel", "both", "--runs", root.parent)
    assert (outcome.code, outcome.out) == (0, "both: no pending or running jobs\n")
    outcome = mezzotint("cancel", "both", "--runs", root.parent, "--json")
    assert json.loads(outcome.out) == {"run": "both", "cancelled": []}


def test_without_slurm_it_is_not_known_whether_jobs_are_live(refused, root, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "squeue: " in refused("cancel", "both", "--runs", root.parent)


def test_a_run_of_a_local_process_is_not_cancelled(refused, root):
    (root / "submission.json").unlink()
    (root / "tokenizer" / "logs").mkdir(parents=True)
    with run_lock(root):
        (root / "tokenizer" / "logs" / "stage.log").touch()
        message = refused("cancel", "both", "--runs", root.parent)
    assert f"kill -TERM {os.getpid()}" in message
    assert "Ctrl-C" in message


def test_unknown_runs_and_stages_are_refused_with_suggestions(refused, root):
    assert refused("cancel", "bothe", "--runs", root.parent).endswith("there is both")
    assert refused("cancel", "both", "evaluat", "--runs", root.parent).endswith("there is evaluate")
