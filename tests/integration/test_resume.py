"""A run that is killed goes on from its last checkpoint with the same command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models import store
from trainer.signals import PREEMPTED
from trainer.tracking.run_log import read_metrics

pytestmark = pytest.mark.processes
STEPS = 60
COMMAND = [sys.executable, "-P", "-m", "launch.cli.main", "train", "recipes/emoji_dvae.yaml"]
SETTINGS = [
    f"steps={STEPS}",
    "batch=8",
    "model.width=32",
    "model.initial_width=32",
    "model.vocab=64",
    "engine.precision=fp32",
    "checkpoint.every=10",
    "log.every=1",
    "log.previews=null",
]


def start(runs: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [*COMMAND, *SETTINGS, "--runs", str(runs)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=200)
    return process.returncode, output


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-*/MANIFEST.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "no checkpoint in two minutes"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run without interruption."""
    runs = tmp_path_factory.mktemp("straight")
    code, output = end(start(runs))
    assert code == 0, output
    return runs / "emoji_dvae"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_same_command_resumes_and_ends_like_an_uninterrupted_run(straight, tmp_path, number):
    run = tmp_path / "emoji_dvae"
    first = start(tmp_path)
    wait_for_checkpoint(run, first)
    first.send_signal(number)
    code, output = end(first)
    assert code == (PREEMPTED if number == signal.SIGTERM else -signal.SIGKILL), output
    assert not (run / "model").exists()

    code, output = end(start(tmp_path))
    assert code == 0, output
    assert "resuming from" in output
    steps = [line["step"] for line in read_metrics(run / "metrics.jsonl")]
    assert steps == list(range(1, STEPS + 1))
    assert (
        store.describe(str(run / "model")).digest == store.describe(str(straight / "model")).digest
    )
    assert json.loads((run / "summary.json").read_text())["steps"] == STEPS


def test_a_finished_run_is_not_trained_again(straight):
    before = (straight / "metrics.jsonl").stat().st_mtime_ns
    code, output = end(start(straight.parent))
    assert code == 0, output
    assert (straight / "metrics.jsonl").stat().st_mtime_ns == before
