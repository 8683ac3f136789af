"""A server named by the environment, and runs that have something to send to it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from trainer.tracking.run_log import RunInfo, record_end, record_start

FAST = {
    "OMP_NUM_THREADS": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
}


@pytest.fixture
def server(mlflow_server, monkeypatch):
    """The server, named by the environment as for every command."""
    for name, value in {**FAST, "MLFLOW_TRACKING_URI": mlflow_server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MEZZOTINT_EXPERIMENT", raising=False)
    return mlflow_server


@pytest.fixture
def client(server) -> MlflowClient:
    """Asks the server what it has."""
    return MlflowClient(tracking_uri=server.url)


@pytest.fixture
def pipeline(tmp_path) -> Callable[..., Path]:
    """A pipeline of two tokenizers, started in a directory; the second reads what it is told."""

    def write(name: str, data: str) -> Path:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        stage = {"kind": "tokenizer", "vocab": 300}
        stages = {
            "first": {**stage, "data": {"url": "data/emoji"}},
            "second": {**stage, "data": {"url": data}},
        }
        (root / "pipeline.yaml").write_text(yaml.safe_dump({"name": name, "stages": stages}))
        return root

    return write


@pytest.fixture
def recorded(tmp_path) -> Path:
    """A run that has something to send."""
    run = tmp_path / "recorded"
    run.mkdir()
    record_start(run, "refused", RunInfo("recorded", {"a": 1}))
    record_end(run, "FINISHED")
    return run
