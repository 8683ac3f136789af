"""Runs in a real MLflow store: their experiment, long values, names and numbers."""

import json
import os
from dataclasses import replace

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from tracked_run import OPENING, run_id

from trainer.tracking.address import TrackingError
from trainer.tracking.environment import tracking_from_environment
from trainer.tracking.mlflow_client import Uploader, make_client
from trainer.tracking.run_log import (
    MetricsLog,
    RunInfo,
    read_metrics,
    read_upload_state,
    record_start,
    start_record,
)

# SQLAlchemy and alembic warn about how MLflow uses them.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def client(link) -> MlflowClient:
    return make_client(link.uri)


def experiment(client: MlflowClient, run) -> str:
    found = client.get_run(run_id(run)).info.experiment_id
    return client.get_experiment(found).name


def test_a_relative_store_and_an_experiment_s_name_are_taken_from_any_directory(
    store, link, client, run, monkeypatch, tmp_path
):
    folder, _, file = store.removeprefix("sqlite:///").rpartition("/")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "photos")
    tracking = tracking_from_environment()
    monkeypatch.chdir(tmp_path)
    start_record(run.path, tracking, OPENING)
    Uploader(run, tracking).sync()
    assert experiment(client, run) == "photos"
    location = client.get_experiment_by_name("photos").artifact_location
    assert location == f"file://{folder}/mlartifacts"


def test_the_experiment_of_the_start_stays_and_a_later_variable_precedes_it(
    link, client, run, tmp_path, monkeypatch
):
    identifier = client.create_experiment("by its id")
    start_record(run.path, replace(link, experiment_id=identifier), OPENING)
    Uploader(run, link).sync()  # such as by `tracking sync` in another shell
    assert experiment(client, run) == "by its id"
    (run.path / "tracking.json").unlink()
    named = replace(link, experiment="by its name", experiment_named=True)
    Uploader(run, named).sync()
    assert experiment(client, run) == "by its name"


def test_an_experiment_that_is_deleted_is_named_with_the_ways_out(link, client, run, started):
    started.experiment = None
    deleted = client.create_experiment("deleted")
    client.delete_experiment(deleted)
    tracking = replace(link, experiment="deleted", experiment_named=True)
    with pytest.raises(TrackingError, match=r"experiment 'deleted' is deleted") as refused:
        Uploader(run, tracking).sync()
    assert f"mlflow experiments restore --experiment-id {deleted}" in str(refused.value)
    assert "MLFLOW_EXPERIMENT_NAME" in str(refused.value)
    with pytest.raises(TrackingError, match=f"MLFLOW_EXPERIMENT_ID={deleted}: .*deleted"):
        Uploader(run, replace(link, experiment_id=deleted)).sync()
    client.restore_experiment(deleted)
    Uploader(run, tracking).sync()
    client.delete_run(run_id(run))
    MetricsLog(run.metrics).append(1, {"loss/model": 1.0})
    with pytest.raises(TrackingError, match="mlflow runs restore --run-id"):
        Uploader(run, tracking).sync()
    (run.path / "tracking.json").unlink()  # as the message says
    assert Uploader(run, tracking).sync().steps == 1


@pytest.mark.parametrize("identifier", ["987654", "no number"])
def test_an_experiment_id_that_the_store_does_not_have_is_named(link, run, started, identifier):
    with pytest.raises(TrackingError, match=f"MLFLOW_EXPERIMENT_ID={identifier}: .*no such"):
        Uploader(run, replace(link, experiment_id=identifier)).sync()


def test_a_name_and_an_id_of_two_experiments_are_refused(link, client, run, started):
    client.create_experiment("the named one")
    other = client.create_experiment("the other one")
    named = replace(link, experiment="the named one", experiment_named=True, experiment_id=other)
    with pytest.raises(TrackingError, match=f"MLFLOW_EXPERIMENT_ID={other}: is not the experiment"):
        Uploader(run, named).sync()


def test_a_run_that_a_variable_names_is_continued_by_one_run_directory(
    link, client, run, started, tmp_path
):
    given = client.create_run(client.create_experiment("projects"), run_name="given").info.run_id
    client.log_param(given, "optimizer.lr.peak", "from the command")
    tracking = replace(link, run_id=given, run_name="unused")
    MetricsLog(run.metrics).append(1, {"loss/model": 1.0})
    Uploader(run, tracking).sync()
    assert run_id(run) == given
    found = client.get_run(given)
    assert (found.info.run_name, found.data.metrics) == ("given", {"loss/model": 1.0})
    assert found.data.params == {"optimizer.lr.peak": "from the command"}
    second = type(run)(tmp_path / "second")
    second.path.mkdir()
    record_start(second.path, "tests", OPENING)
    with pytest.raises(TrackingError, match=f"MLFLOW_RUN_ID={given}: is the MLflow run of .*run"):
        Uploader(second, tracking).sync()
    with pytest.raises(TrackingError, match="MLFLOW_RUN_ID"):
        Uploader(second, replace(link, run_id="0" * 32)).sync()


def test_a_pipeline_continues_the_run_and_its_stages_are_under_it(link, client, run, tmp_path):
    given = client.create_run(client.create_experiment("pipelines")).info.run_id
    record_start(tmp_path, "pipelines", RunInfo("whole"))
    record_start(run.path, "pipelines", OPENING)
    Uploader(run, replace(link, root=tmp_path, run_id=given, run_name="named")).sync()
    assert read_upload_state(tmp_path).run_id == given
    stage = client.get_run(run_id(run))
    assert stage.data.tags["mlflow.parentRunId"] == given
    assert stage.info.run_name == "try"


def test_a_run_has_the_name_that_a_variable_gives_it(link, client, run, started):
    Uploader(run, replace(link, run_name="Monday")).sync()
    assert client.get_run(run_id(run)).info.run_name == "Monday"


def test_long_parameters_are_whole_up_to_mlflow_s_limit_and_marked_above(link, client, run):
    classes = [f"class number {number} of the garden birds" for number in range(300)]
    params = {"note": "a" * 700, "classes": classes, "k" * 300: "x"}
    record_start(run.path, "tests", RunInfo("try", params, {"mezzotint.jobs": "7, " * 4000}))
    Uploader(run, link).sync()
    found = client.get_run(run_id(run)).data
    assert found.params["note"] == "a" * 700
    assert len(found.params["classes"]) == 6000
    assert "[cut: " in found.params["classes"]
    assert "[cut: 12,000 characters" in found.tags["mezzotint.jobs"]
    (key,) = [key for key in found.params if key.startswith("kkk")]
    assert len(key) == 250
    path = client.download_artifacts(run_id(run), "parameters.json")
    with open(path, encoding="utf-8") as file:
        assert json.load(file)["classes"] == str(classes)
    assert "tags.json" in {entry.path for entry in client.list_artifacts(run_id(run))}


def test_hundred_long_parameters_are_sent_in_requests_that_a_server_takes(link, client, run):
    params = {f"text {number}": "€" * 5000 for number in range(100)}
    record_start(run.path, "tests", RunInfo("try", params))
    Uploader(run, link).sync()
    assert len(client.get_run(run_id(run)).data.params) == 100


def test_a_metric_whose_name_mlflow_refuses_is_sent_under_another_and_stops_no_other(
    link, client, run, started
):
    with pytest.raises(MlflowException):
        client.log_metric(run_id_of_a_new_run(client), "accuracy/Côte d'Ivoire", 1.0)
    names = {"accuracy/Côte d'Ivoire": 1.0, "accuracy/Côte d´Ivoire": 2.0, "a//b": 3.0, "ok": 4.0}
    MetricsLog(run.metrics).append(1, names)
    Uploader(run, link).sync()
    found = client.get_run(run_id(run)).data.metrics
    assert sorted(found.values()) == [1.0, 2.0, 3.0, 4.0]
    assert sum(name.startswith("accuracy/Côte d_Ivoire-") for name in found) == 2


def run_id_of_a_new_run(client: MlflowClient) -> str:
    found = client.get_experiment_by_name("refused names")
    identifier = found.experiment_id if found else client.create_experiment("refused names")
    return client.create_run(identifier).info.run_id


def test_numbers_that_are_not_finite_are_counted_and_not_sent(link, client, run, started):
    record = MetricsLog(run.metrics)
    record.append(1, {"loss/model": 1.0, "grad_norm": 2.0})
    record.append(2, {"loss/model": 1.5, "grad_norm": float("inf")})
    record.append(3, {"loss/model": float("nan"), "grad_norm": float("-inf")})
    MetricsLog(run.metrics).append(4, {"loss/model": 1.25, "grad_norm": 3.0})  # a restart
    for line in run.metrics.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert read_metrics(run.metrics)[2]["non_finite"] == {"loss/model": "nan", "grad_norm": "-inf"}
    Uploader(run, link).sync()
    sent = {
        name: [each.value for each in client.get_metric_history(run_id(run), name)]
        for name in ("loss/model", "grad_norm", "non_finite_updates")
    }
    assert sent == {
        "loss/model": [1.0, 1.5, 1.25],
        "grad_norm": [2.0, 3.0],
        "non_finite_updates": [1.0, 2.0, 2.0],
    }


def test_a_metrics_file_of_an_earlier_version_is_read_and_sent_without_its_infinities(
    link, client, run, started
):
    line = '{"step": 1, "time": 1.0, "metrics": {"loss/model": NaN, "grad_norm": Infinity, "a": 1}}'
    run.metrics.write_text(line + "\n")
    Uploader(run, link).sync()
    assert client.get_run(run_id(run)).data.metrics == {"a": 1.0}
    MetricsLog(run.metrics).append(2, {"a": 2.0})
    Uploader(run, link).sync()
    assert client.get_run(run_id(run)).data.metrics == {"a": 2.0}


def test_a_folder_is_a_store_where_mlflow_allows_it(link, run, started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    tracking = tracking_from_environment()
    with pytest.raises(TrackingError, match="MLFLOW_ALLOW_FILE_STORE=true"):
        Uploader(run, tracking).sync()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    Uploader(run, tracking).sync()
    assert any((tmp_path / "mlruns").rglob("meta.yaml"))
    assert os.environ["MLFLOW_TRACKING_URI"] == str(tmp_path / "mlruns")


def test_another_store_than_that_of_the_run_is_not_said_to_be_up_to_date(
    link, client, run, started, tmp_path, monkeypatch
):
    Uploader(run, link).sync()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    elsewhere = replace(link, uri=str(tmp_path / "mlruns"))
    with pytest.raises(TrackingError, match="does not know this run") as refused:
        Uploader(run, elsewhere).sync()
    assert f"was created in {link.uri}: set MLFLOW_TRACKING_URI to that" in str(refused.value)
    absent = replace(link, uri=f"sqlite:///{tmp_path}/absent.db")
    with pytest.raises(TrackingError, match="does not know this run"):
        Uploader(run, absent).sync()
    assert not (tmp_path / "absent.db").exists()
    renamed = replace(link, uri=f"{link.uri}?timeout=5")  # the same store by another address
    Uploader(run, renamed).sync()
    assert read_upload_state(run.path).store == renamed.uri
