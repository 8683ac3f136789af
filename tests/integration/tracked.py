"""What the tests against a real MLflow server share: commands, and questions to the server."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from trainer.tracking.run_log import read_upload_state

STEPS = 40
TRAIN = ["train", "recipes/emoji_dvae.yaml", f"steps={STEPS}", "batch=8", "model.width=32"]
TRAIN += ["model.initial_width=32", "model.vocab=64", "engine.precision=fp32", "log.every=1"]
TRAIN += ["checkpoint.every=10", "log.previews=20"]


def mezzotint(*words: object, **variables: str) -> "subprocess.Popen[str]":
    """A command of a user, just started."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "launch.cli.main", *map(str, words)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and output of a command."""
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def until(condition: Callable[[], object], seconds: float = 90) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def found(client: MlflowClient, directory: Path) -> Run:
    """The MLflow run of a directory."""
    run_id = read_upload_state(directory).run_id
    assert run_id is not None
    return client.get_run(run_id)


def steps(client: MlflowClient, directory: Path, name: str = "loss/model") -> list[int]:
    """The steps MLflow has of a metric, in the order of their time."""
    history = client.get_metric_history(found(client, directory).info.run_id, name)
    return [metric.step for metric in sorted(history, key=lambda metric: metric.timestamp)]


def runs_named(client: MlflowClient, experiment: str) -> list[Run]:
    """All runs of an experiment."""
    identifier = client.get_experiment_by_name(experiment).experiment_id
    return list(client.search_runs([identifier]))
