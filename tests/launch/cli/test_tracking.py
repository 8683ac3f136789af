"""`mezzotint tracking sync` on directories and servers that it cannot use."""

import json
import re

import pytest

from launch import errors
from trainer.tracking.run_log import RunInfo, record_end, record_start

pytestmark = pytest.mark.filterwarnings("ignore")  # SQLAlchemy and alembic warn of MLflow's use


@pytest.fixture
def recorded(tmp_path):
    """A run that has something to send."""
    run = tmp_path / "runs" / "recorded"
    run.mkdir(parents=True)
    record_start(run, None, RunInfo("recorded", {"a": 1}))
    record_end(run, "FINISHED")
    return run


def refused(outcome) -> str:
    assert outcome.code == errors.BAD_INPUT, outcome
    assert "Traceback" not in outcome.err
    (line,) = outcome.err.splitlines()
    return line.removeprefix("error: ")


def test_the_help_of_sync_has_an_example(mezzotint):
    outcome = mezzotint("tracking", "sync", "--help")
    assert outcome.code == 0
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", outcome.out).split())
    assert "Examples: mezzotint tracking sync quickstart" in text


def test_other_directories_are_refused(mezzotint, tmp_path):
    assert "is not a run directory" in refused(mezzotint("tracking", "sync", tmp_path))
    assert "is not a run directory" in refused(mezzotint("tracking", "sync", tmp_path / "absent"))


def test_a_run_that_never_started_has_nothing_to_upload(mezzotint, tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: x")
    assert "start the run first" in refused(mezzotint("tracking", "sync", tmp_path))


def test_an_unreachable_server_is_one_message(mezzotint, recorded, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:canary@127.0.0.1:1")
    message = refused(mezzotint("tracking", "sync", recorded))
    assert "nothing listens where the MLflow server at http://127.0.0.1:1 should be" in message
    assert "canary" not in message


def test_an_invalid_address_is_named(mezzotint, recorded, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "server:5000")
    assert "MLFLOW_TRACKING_URI='server:5000'" in refused(mezzotint("tracking", "sync", recorded))


def test_an_unreadable_record_is_named_with_the_next_step(mezzotint, recorded):
    (recorded / "opening.json").write_text("{")
    assert "opening.json: cannot be read; remove" in refused(
        mezzotint("tracking", "sync", recorded)
    )


def test_without_a_server_sync_fills_the_store_beside_the_runs(mezzotint, recorded, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    outcome = mezzotint("tracking", "sync", "recorded", "--runs", recorded.parent, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["store"] == f"sqlite:///{recorded.parent}/mlflow.db"
    assert report["runs"][0]["created"] is True
    assert (recorded.parent / "mlflow.db").is_file()
