"""`mezzotint logs`: which log is shown, and when following ends."""

import subprocess
import sys
from pathlib import Path

import pytest

from mezzotint.common.files import write_json
from mezzotint.common.locks import run_lock

PIPELINE = """\
name: both
stages:
  tokenizer: {kind: tokenizer}
  train: {kind: train, after: [tokenizer]}
"""


@pytest.fixture
def root(tmp_path) -> Path:
    """A pipeline whose first stage is finished and whose second has failed."""
    path = tmp_path / "runs" / "both"
    for name in ("tokenizer", "train"):
        (path / name / "logs").mkdir(parents=True)
        lines = "".join(f"{name} line {number}\n" for number in range(100))
        (path / name / "logs" / "stage.log").write_text(lines)
    (path / "pipeline.yaml").write_text(PIPELINE)
    write_json(path / "tokenizer" / "stage.json", {"id": "1"})
    (path / "train" / "exit_code").write_text("1\n")
    return path


def test_the_log_of_the_failed_stage_is_shown_and_named(mezzotint, root):
    outcome = mezzotint("logs", "both", "--runs", root.parent, "--lines", 2)
    assert outcome.out == "train line 98\ntrain line 99\n"
    assert outcome.err == f"train (failed): {root}/train/logs/stage.log\n"


def test_the_log_of_a_named_stage_is_shown(mezzotint, root):
    outcome = mezzotint("logs", "both", "tokenizer", "--runs", root.parent)
    assert outcome.out.splitlines() == [f"tokenizer line {number}" for number in range(60, 100)]


def test_the_last_log_of_a_finished_run_is_shown(mezzotint, root):
    (root / "train" / "exit_code").unlink()
    write_json(root / "train" / "stage.json", {"id": "2"})
    outcome = mezzotint("logs", "both", "--runs", root.parent, "--lines", 1)
    assert outcome.out == "train line 99\n"


def test_the_log_of_the_job_is_shown_if_it_is_newer(mezzotint, root):
    (root / "train" / "logs" / "job.log").write_bytes(b"caf\xe9\nhalf a line")
    outcome = mezzotint("logs", "both", "--runs", root.parent)
    assert outcome.out == "caf\N{REPLACEMENT CHARACTER}\nhalf a line"


def test_a_stage_without_a_log_and_unknown_names_are_refused(refused, root):
    (root / "tokenizer" / "logs" / "stage.log").unlink()
    runs = ("--runs", root.parent)
    assert refused("logs", "both", "tokenizer", *runs).startswith("tokenizer: has no log")
    assert refused("logs", "both", "trian", *runs).endswith("there is train")
    assert refused("logs", "bot", *runs).endswith("there is both")


def test_following_ends_with_the_stage_and_prints_everything(root):
    log = root / "train" / "logs" / "stage.log"
    (root / "train" / "exit_code").unlink()
    command = [
        sys.executable,
        "-P",
        "-m",
        "launch.cli.main",
        "logs",
        "both",
        "--follow",
        "--lines",
        "1",
    ]
    command += ["--runs", str(root.parent)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with run_lock(root / "train"), subprocess.Popen(command, **pipes) as following:
        assert following.stdout.readline() == "train line 99\n"
        with log.open("a") as file:
            file.write("more\n")
            file.flush()
            assert following.stdout.readline() == "more\n"
            file.write("the end\n")
        write_json(root / "train" / "stage.json", {"id": "2"})
        assert following.stdout.read() == "the end\n"
        assert following.wait(10) == 0
