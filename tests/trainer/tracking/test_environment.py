"""MLflow's own variables, from any working directory."""

import os
from pathlib import Path

import pytest

from trainer.tracking.address import (
    TrackingError,
    absolute_uri,
    check_uri,
    default_uri,
    export_absolute_uri,
    sqlite_path,
)
from trainer.tracking.environment import tracking_environment, tracking_from_environment


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path) -> Path:
    """None of the variables, in a directory of the test."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "MEZZOTINT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///rel.db", "sqlite:///{cwd}/rel.db"),
        ("sqlite:///a/../rel.db?timeout=5", "sqlite:///{cwd}/rel.db?timeout=5"),
        ("sqlite+pysqlite:///rel.db", "sqlite+pysqlite:///{cwd}/rel.db"),
        ("sqlite:////srv/a b.db", "sqlite:////srv/a b.db"),
        ("sqlite:////srv/50%25.db", "sqlite:////srv/50%25.db"),
        ("./mlruns", "{cwd}/mlruns"),
        ("mlruns", "{cwd}/mlruns"),
        ("/srv/mlruns", "/srv/mlruns"),
        ("file:mlruns", "{cwd}/mlruns"),
        ("file:///srv/ml%20runs", "/srv/ml runs"),
        ("http://host:5000/base/path", "http://host:5000/base/path"),
        ("https://user:word@host", "https://user:word@host"),
        ("postgresql+psycopg://u:p@h/db", "postgresql+psycopg://u:p@h/db"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
        ("databricks-uc", "databricks-uc"),
    ],
)
def test_relative_paths_become_absolute_and_other_addresses_stay(environment, uri, absolute):
    assert absolute_uri(uri) == absolute.format(cwd=environment)


def test_a_folder_with_a_percent_sign_is_the_same_folder_in_the_store_s_address(
    environment, monkeypatch
):
    folder = environment / "50%20?"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert sqlite_path(absolute_uri("sqlite:///rel.db")) == folder / "rel.db"
    assert sqlite_path(default_uri(Path("runs"))) == folder / "runs" / "mlflow.db"


def test_child_processes_and_jobs_get_the_absolute_address(environment, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " sqlite:///rel.db ")
    export_absolute_uri()
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{environment}/rel.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    export_absolute_uri()
    assert default_uri(Path("runs")) == f"sqlite:///{environment}/runs/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "step"),
    [
        ("127.0.0.1:5000", "set it to http://127.0.0.1:5000"),
        ("tracking.example:5000/base", "set it to http://tracking.example:5000/base"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("./mlruns", "MLFLOW_ALLOW_FILE_STORE=true"),
        ("s3://bucket/mlruns", "is not the address of a tracking server"),
    ],
)
def test_an_address_that_cannot_work_is_named_with_the_next_step(uri, step):
    with pytest.raises(TrackingError, match=r"^MLFLOW_TRACKING_URI=") as refused:
        check_uri(absolute_uri(uri))
    assert step in str(refused.value)


def test_a_folder_is_a_store_where_mlflow_is_told_to_allow_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    check_uri(absolute_uri("./mlruns"))


@pytest.mark.parametrize(
    ("variables", "experiment", "identifier"),
    [
        ({}, "mezzotint", None),
        ({"MLFLOW_EXPERIMENT_NAME": "photos"}, "photos", None),
        ({"MLFLOW_EXPERIMENT_NAME": ""}, "mezzotint", None),
        ({"MLFLOW_EXPERIMENT_NAME": "photos", "MEZZOTINT_EXPERIMENT": "ours"}, "ours", None),
        ({"MLFLOW_EXPERIMENT_ID": "7"}, "mezzotint", "7"),
        ({"MLFLOW_EXPERIMENT_ID": "7", "MEZZOTINT_EXPERIMENT": "ours"}, "ours", None),
        ({"MLFLOW_EXPERIMENT_ID": "7", "MLFLOW_EXPERIMENT_NAME": "photos"}, "photos", "7"),
    ],
)
def test_the_more_particular_variable_names_the_experiment(
    monkeypatch, variables, experiment, identifier
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracking = tracking_from_environment("sqlite:////srv/mlflow.db")
    assert (tracking.experiment, tracking.experiment_id) == (experiment, identifier)
    for name, value in tracking_environment(tracking).items():  # what a child process has
        monkeypatch.setenv(name, value)
    child = tracking_from_environment()
    assert child.uri == "sqlite:////srv/mlflow.db"
    named = "MEZZOTINT_EXPERIMENT" in tracking_environment(tracking)
    assert child.experiment == experiment
    assert child.experiment_id == (None if named else identifier)


def test_a_pipeline_s_runs_are_in_its_experiment_unless_a_variable_names_one(
    environment, monkeypatch
):
    root = environment / "quickstart"
    assert tracking_from_environment("sqlite:////a.db", root).experiment == "quickstart"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "photos")
    assert tracking_from_environment("sqlite:////a.db", root).experiment == "photos"
    assert tracking_from_environment() is None
