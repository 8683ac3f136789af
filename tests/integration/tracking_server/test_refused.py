"""A server that refuses is named with what mends it, and no password is shown or kept."""

import json
from pathlib import Path

import pytest
from gate import gate
from mlflow import MlflowClient
from tracked import ended, found, mezzotint

from launch.pipeline.stage_process import run_stage
from launch.tracking.sync import sync_run
from mezzotint.common.errors import UserError
from trainer.run import RunDirectory
from trainer.tracking.run_log import RunInfo, TrackingConfig
from trainer.tracking.tracker import Tracker

# SQLAlchemy, alembic and requests warn about how MLflow uses them.
pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore")]
CANARY = "Canary7PassWordThatNobodyMayEverPrint"


def test_a_server_that_refuses_its_host_name_is_named_with_the_option_that_mends_it(
    server, recorded, monkeypatch
):
    with gate(server.url, host="tracking.example:5000") as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url("canary:" + CANARY + "@"))
        with pytest.raises(UserError) as refused:
            sync_run(recorded)
    message = str(refused.value)
    assert "Invalid Host header" in message
    assert f"--allowed-hosts 127.0.0.1:{proxy.port}" in message
    assert CANARY not in message


def test_a_wrong_password_is_a_warning_in_training_and_never_shown(
    server, tmp_path, monkeypatch, caplog
):
    with gate(server.url, password="right") as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url("canary:" + CANARY + "@"))
        link = TrackingConfig(proxy.url("canary:" + CANARY + "@"), "refused")
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        tracker = Tracker(run, link, RunInfo("run"), writes=True, samples=True)
        tracker.log(1, {"loss/model": 1.0})
        tracker.close("FINISHED")
    assert "refuses the user or the password (401)" in caplog.text
    assert "MLFLOW_TRACKING_USERNAME" in caplog.text
    assert CANARY not in caplog.text
    holds_no_canary(run.path)


def holds_no_canary(directory: Path) -> None:
    """No file holds the canary secret."""
    for path in (path for path in directory.rglob("*") if path.is_file()):
        assert CANARY.encode() not in path.read_bytes(), path


def test_the_right_password_in_the_address_lets_a_stage_in_and_is_left_nowhere(
    server, client, pipeline
):
    root = pipeline("address", "data/emoji")
    with gate(server.url, password=CANARY) as proxy:
        address = proxy.url("canary:" + CANARY + "@")
        code, output = ended(mezzotint("stage", root, "first", MLFLOW_TRACKING_URI=address))
    assert code == 0, output
    assert CANARY not in output
    left_nowhere(client, root)


def test_the_right_password_in_variables_lets_a_stage_in_and_is_left_nowhere(
    server, client, pipeline, monkeypatch, capfd, caplog
):
    root = pipeline("variables", "data/emoji")
    with gate(server.url, password=CANARY) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url())
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "canary")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", CANARY)
        run_stage(root, "first")
    out, err = capfd.readouterr()
    assert CANARY not in out + err + caplog.text
    left_nowhere(client, root)


def left_nowhere(client: MlflowClient, root: Path) -> None:
    """What a stage leaves on disk and in MLflow holds no canary."""
    run = found(client, root / "first")
    assert run.info.status == "FINISHED"
    assert CANARY not in json.dumps(run.to_dictionary(), default=str)
    assert CANARY not in json.dumps(found(client, root).to_dictionary(), default=str)
    holds_no_canary(root)
