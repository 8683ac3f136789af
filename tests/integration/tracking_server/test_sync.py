"""What a server missed is sent afterwards, once, and to no other server."""

import json
import threading
from pathlib import Path

import pytest
from tracked import found, runs_named, steps

from launch.pipeline.stage_process import run_stage
from launch.tracking.sync import sync_run
from mezzotint.common.errors import UserError
from trainer.run import RunDirectory
from trainer.tracking.mlflow_client import Uploader
from trainer.tracking.run_log import RunInfo, TrackingConfig
from trainer.tracking.tracker import Tracker

# SQLAlchemy, alembic and requests warn about how MLflow uses them.
pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore")]


def test_sync_sends_a_whole_pipeline_that_no_server_ever_heard_of(
    server, client, pipeline, monkeypatch
):
    root = pipeline("unheard", "data/emoji")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for stage in ("first", "second"):
        run_stage(root, stage)
    assert not list(root.rglob("tracking.json"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    report = sync_run(root)
    assert [Path(name).name for name in report.runs] == ["unheard", "first", "second"]
    assert all(delivery.created for delivery in report.runs.values())
    runs = runs_named(client, "unheard")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert found(client, root / "second").data.tags["mlflow.parentRunId"]
    kept = client.list_artifacts(found(client, root / "second").info.run_id, "model")
    assert [entry.path for entry in kept] == ["model/tokenizer.model"]


def test_a_server_takes_long_values_strange_names_and_no_infinities(server, client, tmp_path):
    run = RunDirectory(tmp_path / "long")
    run.path.mkdir()
    params = {f"text {number}": "€" * 5000 for number in range(100)} | {"classes": "bird " * 2000}
    tracker = Tracker(run, None, RunInfo("long", params), writes=True, samples=False)
    tracker.log(1, {"accuracy/Côte d'Ivoire": 0.5, "grad_norm": float("inf")})
    tracker.close("FINISHED")
    Uploader(run, TrackingConfig(f"{server.url}/", "long")).sync()
    data = found(client, run.path).data
    assert len(data.params) == 101
    assert "[cut: 10,000 characters, SHA-256 " in data.params["classes"]
    assert sorted(data.metrics.values()) == [0.5, 1.0]
    assert data.metrics["non_finite_updates"] == 1.0
    (kept,) = client.list_artifacts(found(client, run.path).info.run_id)
    assert kept.path == "parameters.json"


def test_a_run_that_another_server_knows_is_not_mixed_up(server, recorded, monkeypatch):
    state = {"run_id": "0" * 32, "store": "http://elsewhere:5000"}
    (recorded / "tracking.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="elsewhere:5000"):
        sync_run(recorded)


def test_two_that_send_at_once_send_each_step_once(server, client, tmp_path):
    run = RunDirectory(tmp_path / "at once")
    run.path.mkdir()
    tracker = Tracker(run, None, RunInfo("at once"), writes=True, samples=False)
    for step in range(1, 200):
        tracker.log(step, {"loss/model": 1 / step})
    tracker.close("FINISHED")
    link = TrackingConfig(server.url, "at once")
    senders = [threading.Thread(target=lambda: Uploader(run, link).sync()) for _ in range(3)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert steps(client, run.path) == list(range(1, 200))
    assert len(runs_named(client, "at once")) == 1
