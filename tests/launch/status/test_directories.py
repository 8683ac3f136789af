"""The status of runs from their directories alone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from status_helpers import finish, progress, reasons, states, status

from launch.progress import Reporter, format_rate, read_progress
from launch.slurm import client
from launch.status import lookup
from launch.status.diagnosis import last_error
from launch.status.run_files import last_metrics
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_json
from mezzotint.common.locks import run_lock
from mezzotint.common.storage_errors import redact
from trainer.tracking.run_log import RunInfo, record_end, record_start


def test_without_slurm_the_directories_are_read(submitted, monkeypatch):
    finish(submitted, "tokenizer")
    progress(submitted / "train", 30, 120)
    run = status(submitted, answered=False)
    assert (run.stages[0].state, run.stages[1].state) == ("finished", "unknown")
    assert (run.stages[1].step, run.stages[1].steps) == (30, 120)
    assert run.notes == ("is down",)
    assert not run.ended
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"squeue: .* not installed here"):
        client.job_states([1])


@pytest.mark.parametrize(
    "name", ["progress.json", "submission.json", "stage.json", "attempts.jsonl", "exit_code"]
)
@pytest.mark.parametrize("content", [b"", b'{"phase": "tr', b"\xff\xfe", b"[]", b'{"jobs": []}\n'])
def test_an_incomplete_file_counts_as_missing(submitted, name, content):
    for path in (submitted, submitted / "tokenizer"):
        (path / name).write_bytes(content)
    run = status(submitted)
    assert run.state in ("unknown", "not submitted")
    assert run.stages[0].step is None
    if name == "submission.json":
        assert "submission.json: cannot be read" in run.notes[0]


@pytest.mark.parametrize("content", ["", "stages: 3", "- a", "{", "stages: {tokenizer: 3}"])
def test_an_unreadable_pipeline_is_noted(submitted, content):
    (submitted / "pipeline.yaml").write_text(content)
    run = status(submitted)
    assert run.stages or "pipeline.yaml: cannot be read" in run.notes[0]


def test_a_single_recipe_is_stopped_then_running_then_finished(recipe):
    assert status(recipe).stages[0].steps == 100
    progress(recipe, 40, 100)
    (stage,) = status(recipe).stages
    assert (stage.stage, stage.state, stage.step) == ("train", "stopped", 40)
    with run_lock(recipe):
        run = status(recipe)
        assert (run.state, run.kind, run.lock_owner.pid) == ("running", "recipe", os.getpid())
    write_json(recipe / "summary.json", {"steps": 100})
    assert status(recipe).state == "finished"


def test_a_local_pipeline_runs_fails_and_cancels_downstream_stages(root):
    stage = root / "tokenizer"
    with run_lock(root):
        (stage / "logs" / "stage.log").touch()
        assert states(status(root)) == {
            "tokenizer": "running",
            "train": "waiting",
            "evaluate": "waiting",
        }
        (stage / "logs" / "stage.log").write_text("error: no captions\n")
        (stage / "exit_code").write_text("2\n")
        during = status(root)
        assert states(during) == {
            "tokenizer": "failed",
            "train": "cancelled",
            "evaluate": "cancelled",
        }
    after = status(root)
    assert reasons(after)["tokenizer"] == "exit code 2: no captions"
    assert states(after)["evaluate"] == "cancelled"


def test_a_status_query_does_not_block_the_run_lock(root):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from mezzotint.common.locks import lock_owner\n"
        "end = time.time() + 3\nwhile time.time() < end: lock_owner(Path(sys.argv[1]))"
    )
    (root / "lock").touch()
    querying = subprocess.Popen([sys.executable, "-c", code, str(root)])
    for _ in range(200):
        with run_lock(root):
            pass
    querying.kill()
    querying.wait()


def test_progress_has_metrics_and_the_time_left_and_old_files_are_read(tmp_path, monkeypatch):
    clock = iter(range(100, 1000, 10))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    reporter = Reporter(tmp_path, shows=False)
    reporter(20, 100, {"loss/model": 1.0, "steps_per_second": 4.0})
    assert read_progress(tmp_path).seconds_left == 20.0
    reporter(40, 100, {"loss/model": 0.5, "steps_per_second": 4.0})
    report = read_progress(tmp_path)
    assert (report.seconds_left, report.metrics["loss/model"]) == (30.0, 0.5)
    old = {"phase": "train", "done": 1, "total": 2, "note": "", "time": 3.0}
    write_json(tmp_path / "progress.json", old)
    assert read_progress(tmp_path).metrics == {}


def test_the_loss_of_an_older_run_is_read_from_its_metrics_file(recipe):
    progress(recipe, 40, 100)
    lines = [{"step": step, "metrics": {"loss/model": step / 10}} for step in (20, 40)]
    (recipe / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines) + "{")
    assert status(recipe).stages[0].loss == 4.0


def test_a_run_that_failed_is_said_to_have_failed_with_its_error(recipe):
    progress(recipe, 40, 100)
    record_start(recipe, None, RunInfo("alone"))
    record_end(recipe, "FAILED", error=UserError("loss/model is nan at step 41: lower it\nmore"))
    (stage,) = status(recipe).stages
    assert (stage.state, stage.reason) == ("failed", "loss/model is nan at step 41: lower it")
    assert stage.since == pytest.approx(time.time(), abs=60)
    with run_lock(recipe):  # the same command again
        record_start(recipe, None, RunInfo("alone"))
        assert status(recipe).state == "running"
    assert status(recipe).state == "stopped"


def test_a_run_is_found_from_inside_its_directory_and_from_that_of_a_stage(root, monkeypatch):
    for directory in (root, root / "train"):
        (directory / "recipe.yaml").touch()
        monkeypatch.chdir(directory)
        assert lookup.find_run(".", Path("runs")) == root
    monkeypatch.chdir(root / "train" / "logs")
    assert lookup.find_run("..", Path("runs")) == root


def test_metrics_that_are_not_finite_are_left_out_of_reports(recipe, tmp_path):
    Reporter(tmp_path)(100, 100, {"loss/model": float("nan"), "images_per_second": 0.25})
    json.loads((tmp_path / "progress.json").read_text(), parse_constant=pytest.fail)
    assert read_progress(tmp_path).metrics == {"images_per_second": 0.25}
    assert "0.25 images/s" in read_progress(tmp_path).note
    (recipe / "metrics.jsonl").write_text('{"metrics": {"loss/model": NaN, "other": 1.0}}\n')
    assert last_metrics(recipe / "metrics.jsonl") == {"other": 1.0}


@pytest.mark.parametrize(("rate", "shown"), [(0.0421, "0.042"), (9.96, "10"), (1234.5, "1,234")])
def test_slow_speeds_are_not_rounded_to_nothing(rate, shown):
    assert format_rate(rate) == shown


def test_addresses_are_shown_without_passwords(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:geheim/@x@mlflow.example:5000/p")
    tracking = status(root).tracking
    assert tracking.uri == "https://mlflow.example:5000/p"
    assert redact("see http://a:b@h/x, s3://k@b") == "see http://h/x, s3://b"
    assert last_error("error: http://a:b@h is shut\n", 2) == "http://h is shut"


def test_runs_are_found_by_name_or_path_and_similar_names_are_listed(root, recipe):
    runs = root.parent
    os.utime(root / "pipeline.yaml", (1, 1))
    assert lookup.all_runs(runs) == [recipe, root]
    assert lookup.find_run("both", runs) == root
    assert lookup.find_run(str(root), Path("elsewhere")) == root
    (root / "train" / "recipe.yaml").touch()
    assert lookup.find_run(str(root / "train"), runs) == root
    with pytest.raises(UserError, match=r"bohts: no such run in .*; there is both"):
        lookup.find_run("bohts", runs)
    with pytest.raises(UserError, match="there is none yet"):
        lookup.find_run("both", Path("elsewhere"))
    with pytest.raises(UserError, match=r"trian: no such stage in .*; there is train"):
        lookup.find_stage("trian", root)
