"""Tracking against a real MLflow store in a file, and against servers that do not answer."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tracked_run import OPENING, run_id

from trainer.run import RunDirectory
from trainer.tracking import mlflow_client
from trainer.tracking.address import TrackingError, default_uri
from trainer.tracking.mlflow_client import NodeMetricsUploader, Uploader, make_client
from trainer.tracking.run_log import (
    MetricsLog,
    RunInfo,
    TrackingConfig,
    node_name,
    read_run_record,
    read_upload_state,
    record_end,
    record_start,
)
from trainer.tracking.tracker import Tracker, finalize

# SQLAlchemy and alembic warn about how MLflow uses them.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def write(run) -> Callable[..., None]:
    """Appends steps to the run's record."""
    record = MetricsLog(run.metrics)

    def append(*steps: int) -> None:
        for step in steps:
            record.append(step, {"loss/model": 1 / step, "grad_norm": float(step)})

    return append


def history(
    link: TrackingConfig, run: RunDirectory, name: str = "loss/model"
) -> list[tuple[int, float]]:
    found = make_client(link.uri).get_metric_history(run_id(run), name)
    return sorted((metric.step, metric.value) for metric in found)


def expected(*steps: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in steps]


def picture(run: RunDirectory, name: str) -> None:
    Image.new("RGB", (4, 4), "red").save(run.previews / name)


def test_each_step_is_sent_once_also_when_called_again_or_restarted(link, run, write, started):
    uploader = Uploader(run, link)
    write(1, 2, 3)
    assert uploader.sync().steps == 3
    assert uploader.sync().steps == 0
    assert history(link, run) == expected(1, 2, 3)
    first = run_id(run)
    write(4)
    restarted = Uploader(run, link)
    restarted.sync()
    restarted.sync()
    assert run_id(run) == first
    assert history(link, run) == expected(1, 2, 3, 4)


def test_the_run_says_what_it_is(link, run, write, tmp_path, started):
    write(1)
    record_start(tmp_path, "tests", RunInfo("whole"))
    Uploader(run, replace(link, root=tmp_path)).sync()
    found = make_client(link.uri).get_run(run_id(run))
    assert found.info.run_name == "try"
    assert found.data.params == {"optimizer.lr.peak": "0.001"}
    assert found.data.tags["mezzotint.kind"] == "train"
    assert found.data.tags["mlflow.parentRunId"] == read_upload_state(tmp_path).run_id
    assert found.inputs.dataset_inputs[0].dataset.digest == "f" * 36


def test_a_second_start_is_the_same_run_and_what_changed_is_in_its_tags(
    link, run, write, started, monkeypatch
):
    write(1)
    record_end(run.path, "KILLED")
    Uploader(run, link).sync()
    found = make_client(link.uri)
    assert found.get_run(run_id(run)).info.status == "KILLED"
    jobs = {"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "1", "SLURM_JOB_NODELIST": "n[1-2]"}
    for name, value in jobs.items():
        monkeypatch.setenv(name, value)
    changed = RunInfo("try", {"optimizer": {"lr": {"peak": 2}}}, OPENING.tags, OPENING.dataset)
    record_start(run.path, "tests", changed, processes=2)
    write(2)
    Uploader(run, link).sync()
    again = found.get_run(run_id(run))
    assert again.info.status == "RUNNING"
    assert again.data.params == {"optimizer.lr.peak": "0.001"}
    tags = {key.removeprefix("mezzotint."): value for key, value in again.data.tags.items()}
    assert (tags["restarts"], tags["processes"]) == ("1", "2")
    assert (tags["jobs"], tags["requeues"], tags["nodes"]) == ("17", "1", "n[1-2]")
    assert history(link, run) == expected(1, 2)
    record_end(run.path, "FINISHED", params_at_end={"pieces": "300"})
    Uploader(run, link).sync()
    ended = found.get_run(run_id(run))
    assert ended.info.status == "FINISHED"
    assert ended.data.params["pieces"] == "300"
    assert read_run_record(run.path).ended * 1000 == pytest.approx(ended.info.end_time, abs=1)


def test_a_run_whose_making_was_not_heard_of_is_not_made_twice(link, run, write, started):
    Uploader(run, link).sync()
    first = run_id(run)
    (run.path / "tracking.json").unlink()  # as when the answer was lost
    write(1)
    Uploader(run, link).sync()
    assert run_id(run) == first
    assert history(link, run) == expected(1)


def test_sending_goes_on_after_the_last_acknowledged_byte(link, run, write, started):
    write(1, 2)
    Uploader(run, link).sync()
    assert read_upload_state(run.path).metrics_bytes == run.metrics.stat().st_size
    # what is acknowledged is never read again, whatever became of it
    content = run.metrics.read_bytes()
    run.metrics.write_bytes(b" " * len(content))
    with run.metrics.open("ab") as file:
        file.write(content.splitlines(keepends=True)[0].replace(b'"step": 1', b'"step": 3'))
        file.write(b'{"step": 4, "time": 1, "metr')  # being written
    Uploader(run, link).sync()
    assert [step for step, _ in history(link, run)] == [1, 2, 3]


def test_an_acknowledgement_lost_in_a_crash_repeats_no_step(link, run, write, started):
    write(1)
    Uploader(run, link).sync()
    before = (run.path / "tracking.json").read_text()
    write(2, 3)
    Uploader(run, link).sync()
    (run.path / "tracking.json").write_text(before)
    Uploader(run, link).sync()
    assert history(link, run) == expected(1, 2, 3)


def test_a_picture_whose_arrival_was_not_heard_of_is_not_sent_twice(link, run, started):
    Uploader(run, link).sync()
    before = (run.path / "tracking.json").read_text()
    picture(run, "samples-step-00000500.png")
    Uploader(run, link).sync()
    (run.path / "tracking.json").write_text(before)
    assert Uploader(run, link).sync().images == 0
    assert (
        len(make_client(link.uri).list_artifacts(run_id(run), "images")) == 2
    )  # and its small copy


def test_long_records_are_sent_in_several_requests(link, run, write, monkeypatch, started):
    monkeypatch.setattr(mlflow_client, "BATCH", 7)
    write(*range(1, 30))
    assert Uploader(run, link).sync().steps == 29
    assert history(link, run) == expected(*range(1, 30))


def test_pictures_are_sent_once_with_their_step(link, run, write, started):
    write(1)
    for step in (500, 1000):
        picture(run, f"samples-step-{step:08d}.png")
    Uploader(run, link).sync()
    picture(run, "samples-step-00001500.png")
    assert Uploader(run, link).sync().images == 1
    sent = make_client(link.uri).list_artifacts(run_id(run), "images")
    whole = [entry.path for entry in sent if entry.path.endswith(".png")]
    assert len(whole) == 3
    steps = {word for path in whole for word in path.replace("%", "+").split("+")}
    assert {"500", "1000", "1500"} <= steps


def test_closing_sends_the_rest_ends_the_run_and_keeps_the_model(link, run):
    (run.path / "model").mkdir()
    (run.path / "model" / "config.json").write_text("{}")
    tracker = Tracker(run, link, OPENING, writes=True, samples=True)
    tracker.log(1, {"loss/model": 1.0})
    tracker.log_images(1, {"samples": Image.new("RGB", (4, 4))})
    tracker.close("FINISHED", {"model": run.model, "absent": run.path / "absent"})
    assert history(link, run) == [(1, 1.0)]
    found = make_client(link.uri)
    ended = found.get_run(run_id(run))
    assert ended.info.status == "FINISHED"
    kept = found.list_artifacts(run_id(run), "model")
    assert [entry.path for entry in kept] == ["model/config.json"]
    assert read_upload_state(run.path).images == ["samples-step-00000001.png"]
    assert f"system/{node_name()}/cpu_utilization_percentage" in ended.data.metrics


def test_a_run_without_a_server_keeps_all_that_can_be_sent_later(link, run):
    tracker = Tracker(run, None, OPENING, writes=True, samples=True)
    tracker.log(1, {"loss/model": 1.0})
    tracker.close("FINISHED", {"model": run.model})
    assert not (run.path / "tracking.json").exists()
    finalize(run, link)
    assert history(link, run) == [(1, 1.0)]
    assert make_client(link.uri).get_run(run_id(run)).info.status == "FINISHED"


def test_a_process_that_does_not_write_leaves_nothing(link, run):
    tracker = Tracker(run, link, OPENING, writes=False, samples=False)
    tracker.log(1, {"loss/model": 1.0})
    tracker.log_images(1, {"samples": Image.new("RGB", (4, 4))})
    tracker.close("FINISHED")
    assert [path.name for path in run.path.rglob("*")] == ["previews"]


def test_other_nodes_send_their_load_to_the_run_and_make_none(link, run, started, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    other = Tracker(run, link, OPENING, writes=False, samples=True)
    other.close("FINISHED")
    assert not (run.path / "tracking.json").exists()
    Uploader(run, link).sync()
    assert NodeMetricsUploader(run.path, link, "n2").sync() == 1
    assert NodeMetricsUploader(run.path, link, "n2").sync() == 0
    assert history(link, run, "system/n2/system_memory_usage_percentage")


def test_an_artifact_that_changed_is_sent_again_and_tracking_s_own_files_are_not(
    link, run, started
):
    report = run.path / "report.json"
    report.write_text("1")
    record_end(run.path, "FAILED", {"all": run.path})
    Uploader(run, link).sync()
    record_start(run.path, "tests", OPENING)
    report.write_text("2")
    record_end(run.path, "FINISHED", {"all": run.path})
    assert Uploader(run, link).sync().artifacts == 1
    kept = make_client(link.uri).list_artifacts(run_id(run), "all")
    assert [entry.path for entry in kept] == ["all/report.json"]


@pytest.fixture(params=["closed port", "silence"])
def dead(request, monkeypatch) -> Iterator[TrackingConfig]:
    """A server that refuses connections, and one that takes them and says nothing."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "silence":
            server.listen()
        yield TrackingConfig(f"http://user:secret@127.0.0.1:{server.getsockname()[1]}", "tests")


def test_a_server_that_does_not_answer_delays_nothing_and_gets_all_later(
    dead, link, run, write, caplog
):
    tracker = Tracker(run, dead, OPENING, writes=True, samples=False)
    time.sleep(1.2)  # the thread is waiting for the server now
    slowest = 0.0
    for step in (1, 2, 3):
        began = time.monotonic()
        tracker.log(step, {"loss/model": 1 / step})
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.5
    began = time.monotonic()
    tracker.close("FINISHED")
    assert time.monotonic() - began < 10
    assert "The record is complete in" in caplog.messages[-1]
    assert "mezzotint tracking sync" in caplog.messages[-1]
    assert "secret" not in caplog.text
    Uploader(run, link).sync()
    assert history(link, run) == expected(1, 2, 3)


def test_a_run_without_an_account_is_refused_in_a_sentence(link, run):
    with pytest.raises(TrackingError, match="has no run record yet"):
        Uploader(run, link).sync()


def test_no_password_is_written_down(link, run, write, monkeypatch):
    behind = make_client(link.uri)
    monkeypatch.setattr(mlflow_client, "make_client", lambda _: behind)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-word")
    params = {"url": "https://user:secret@data.example/set", "note": "with canary-word in it"}
    record_start(
        run.path, "passwords", RunInfo("try", params, {"a": "canary-word"}, ("n", "d", "u"))
    )
    write(1)
    Uploader(run, TrackingConfig("https://user:secret@client.example/mlflow", "passwords")).sync()
    for path in (path for path in run.path.rglob("*") if path.is_file()):
        for word in (b"secret", b"canary-word"):
            assert word not in path.read_bytes(), path
    kept = json.dumps(behind.get_run(run_id(run)).to_dictionary(), default=str)
    assert "secret" not in kept
    assert "canary-word" not in kept


def test_the_store_is_beside_the_runs_unless_the_environment_names_one(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert default_uri(Path("runs")) == "http://server:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert default_uri(Path("runs")) == f"sqlite:///{Path('runs').resolve()}/mlflow.db"
