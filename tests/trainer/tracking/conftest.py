"""A real MLflow store in a file, and a run directory."""

import pytest
from tracked_run import OPENING

from trainer.run import RunDirectory
from trainer.tracking.run_log import RunRecord, TrackingConfig, record_start


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> str:
    """One sqlite store for all tests: making it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def link(store, monkeypatch) -> TrackingConfig:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it; the test's end restores it
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return TrackingConfig(store, "tests")


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.previews.mkdir(parents=True)
    return directory


@pytest.fixture
def started(run) -> RunRecord:
    """A run that has said what it is."""
    return record_start(run.path, "tests", OPENING)
