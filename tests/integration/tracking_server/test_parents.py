"""The run of a pipeline is made once, and stands as its stages do."""

import os
import signal
import subprocess
import sys

import pytest
import yaml
from tracked import TRAIN, ended, found, mezzotint, runs_named, until

from launch.pipeline.config import load_pipeline as load_pipeline
from launch.pipeline.runner import Runner
from launch.pipeline.runner import run_pipeline as run_pipeline
from launch.pipeline.stage_process import run_stage
from launch.pipeline.tracking import mark_stage_started, open_pipeline_run, update_status
from trainer.tracking.run_log import (
    TrackingConfig,
    read_metrics,
    read_run_record,
    read_upload_state,
)

# SQLAlchemy, alembic and requests warn about how MLflow uses them.
pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore")]


MEET = """
import sys
from pathlib import Path
from trainer.tracking.environment import tracking_from_environment
from trainer.recipe import load as load_recipe
from trainer.tracking.run_log import RunInfo, record_start
from trainer.run import RunDirectory
from trainer.tracking.mlflow_client import Uploader, configure_mlflow
root, stage = Path(sys.argv[1]), sys.argv[2]
(root / stage).mkdir()
record_start(root / stage, root.name, RunInfo(stage))
configure_mlflow()
(root / f"{stage}.ready").touch()
while not (root / "go").exists(): pass
Uploader(RunDirectory(root / stage), tracking_from_environment(root=root)).sync()
"""


def test_a_parent_that_could_not_be_made_at_the_start_is_made_once_by_whoever_comes_first(
    server, client, tmp_path, caplog
):
    root = tmp_path / "gathered"
    root.mkdir()
    dead = TrackingConfig("http://127.0.0.1:1", "gathered")
    open_pipeline_run(root, dead)
    assert "nothing listens" in caplog.text
    assert read_upload_state(root).run_id is None
    stages = ["one", "two"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.url}
    meeting = [
        subprocess.Popen([sys.executable, "-c", MEET, str(root), stage], env=environment)
        for stage in stages
    ]
    until(lambda: all((root / f"{stage}.ready").exists() for stage in stages))
    (root / "go").touch()
    assert [process.wait(timeout=60) for process in meeting] == [0, 0]
    runs = runs_named(client, "gathered")
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_name for run in parents] == ["gathered"]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert sorted(run.info.run_name for run in children) == sorted(stages)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}


def test_the_parent_is_running_failed_and_finished_as_its_stages_are(
    server, client, pipeline, tmp_path
):
    root = pipeline("states", str(tmp_path / "missing"))
    link = TrackingConfig(server.url, "states", root)
    run_stage(root, "first")
    assert found(client, root).info.status == "RUNNING"
    assert found(client, root / "first").info.status == "FINISHED"
    with pytest.raises(Exception, match="missing"):
        run_stage(root, "second")
    assert found(client, root).info.status == "FAILED"
    assert found(client, root / "second").info.status == "FAILED"
    pipeline("states", "data/emoji")
    mark_stage_started(root, link, "second")
    assert read_run_record(root).status == "RUNNING"
    update_status(root, link)
    assert found(client, root).info.status == "RUNNING"
    run_stage(root, "second")
    assert found(client, root).info.status == "FINISHED"
    assert found(client, root / "second").info.status == "FINISHED"
    assert len(runs_named(client, "states")) == 3


def test_in_a_job_a_stage_that_will_be_queued_again_leaves_the_parent_running(
    server, client, pipeline, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("launch.pipeline.stage_process.execute_stage", lambda *_: 1 / 0)
    root = pipeline("queued", "data/emoji")
    with pytest.raises(ZeroDivisionError):
        run_stage(root, "first")
    assert found(client, root).info.status == "RUNNING"
    assert found(client, root / "first").data.tags["mezzotint.jobs"] == "7"
    update_status(
        root, TrackingConfig(server.url, "queued", root), {"first": "FAILED"}
    )  # the job gives up
    assert found(client, root).info.status == "FAILED"


def test_a_pipeline_that_is_told_to_leave_on_this_machine_is_killed_in_mlflow_too(
    server, client, pipeline, tmp_path
):
    root = pipeline("broken", "data/emoji")
    tree = yaml.safe_load((root / "pipeline.yaml").read_text())
    settings = dict(word.split("=") for word in TRAIN[2:] if "previews" not in word)
    del tree["stages"]["first"]
    tree["stages"]["second"] = {
        "kind": "train",
        "recipe": TRAIN[1],
        "set": {**settings, "steps": 100000},
    }
    recipe = tmp_path / "broken.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    run = mezzotint("run", recipe, "--runs", tmp_path)
    until(lambda: len(read_metrics(root / "second" / "metrics.jsonl")) > 2 or run.poll())
    run.send_signal(signal.SIGTERM)
    code, output = ended(run)
    assert code == 75, output
    assert found(client, root).info.status == "KILLED"
    assert found(client, root / "second").info.status == "KILLED"


def test_a_pipeline_that_is_interrupted_at_the_keyboard_is_killed_in_mlflow_too(
    server, client, pipeline, tmp_path, monkeypatch
):
    def interrupt(_: Runner) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "run", interrupt)
    root = pipeline("keyboard", "data/emoji")
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(load_pipeline(root / "pipeline.yaml"), tmp_path)
    assert found(client, root).info.status == "KILLED"
