"""Tracking against a real MLflow store in a file, and against servers that do not answer."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from trainer import tracking
from trainer.run import RunDirectory
from trainer.tracking import Link, Opening, Record, Tracker, Uploader, client, open_parent

# SQLAlchemy and alembic warn about how MLflow uses them.
pytestmark = pytest.mark.filterwarnings("ignore")
OPENING = Opening(
    "try",
    {"optimizer": {"lr": {"peak": 1e-3}}},
    {"mezzotint.kind": "train"},
    ("set", "f" * 64, "u"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """One sqlite store for all tests: making it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def link(store, monkeypatch) -> Link:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow sets it; the test's end restores it
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return Link(store, "tests")


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.previews.mkdir(parents=True)
    return directory


@pytest.fixture
def write(run) -> Callable[..., None]:
    """Appends steps to the run's record."""
    record = Record(run.metrics)

    def append(*steps: int) -> None:
        for step in steps:
            record.append(step, {"loss/model": 1 / step, "grad_norm": float(step)})

    return append


def history(link: Link, uploader: Uploader, name: str = "loss/model") -> list[tuple[int, float]]:
    found = client(link.uri).get_metric_history(uploader.sent.run_id, name)
    return sorted((metric.step, metric.value) for metric in found)


def expected(*steps: int) -> list[tuple[int, float]]:
    return [(step, 1 / step) for step in steps]


def picture(run: RunDirectory, name: str) -> None:
    Image.new("RGB", (4, 4), "red").save(run.previews / name)


def test_each_step_is_sent_once_also_when_called_again_or_restarted(link, run, write):
    uploader = Uploader(run, link, OPENING)
    write(1, 2, 3)
    uploader.sync()
    uploader.sync()
    assert history(link, uploader) == expected(1, 2, 3)
    write(4)
    restarted = Uploader(run, link, OPENING)
    restarted.sync()
    restarted.sync()
    assert restarted.sent.run_id == uploader.sent.run_id
    assert history(link, restarted) == expected(1, 2, 3, 4)


def test_the_run_says_what_it_is(link, run, write):
    write(1)
    uploader = Uploader(run, Link(link.uri, "tests", parent="0" * 32), OPENING)
    uploader.sync()
    found = client(link.uri).get_run(uploader.sent.run_id)
    assert found.info.run_name == "try"
    assert found.data.params == {"optimizer.lr.peak": "0.001"}
    assert found.data.tags["mezzotint.kind"] == "train"
    assert found.data.tags["mlflow.parentRunId"] == "0" * 32
    assert found.inputs.dataset_inputs[0].dataset.digest == "f" * 36


def test_sending_goes_on_after_the_last_acknowledged_byte(link, run, write):
    uploader = Uploader(run, link, OPENING)
    write(1, 2)
    uploader.sync()
    assert uploader.sent.metrics_bytes == run.metrics.stat().st_size
    # what is acknowledged is never read again, whatever became of it
    content = run.metrics.read_bytes()
    run.metrics.write_bytes(b" " * len(content))
    with run.metrics.open("ab") as file:
        file.write(content.splitlines(keepends=True)[0].replace(b'"step": 1', b'"step": 3'))
        file.write(b'{"step": 4, "time": 1, "metr')  # being written
    Uploader(run, link, OPENING).sync()
    assert [step for step, _ in history(link, uploader)] == [1, 2, 3]


def test_an_acknowledgement_lost_in_a_crash_repeats_no_step(link, run, write):
    uploader = Uploader(run, link, OPENING)
    write(1)
    uploader.sync()
    before = (run.path / "tracking.json").read_text()
    write(2, 3)
    uploader.sync()
    (run.path / "tracking.json").write_text(before)
    again = Uploader(run, link, OPENING)
    again.sync()
    assert history(link, again) == expected(1, 2, 3)


def test_long_records_are_sent_in_several_requests(link, run, write, monkeypatch):
    monkeypatch.setattr(tracking, "BATCH", 110)
    write(*range(1, 30))
    uploader = Uploader(run, link, OPENING)
    uploader.sync()
    assert history(link, uploader) == expected(*range(1, 30))


def test_pictures_are_sent_once_with_their_step(link, run, write):
    write(1)
    for step in (500, 1000):
        picture(run, f"samples-step-{step:08d}.png")
    Uploader(run, link, OPENING).sync()
    picture(run, "samples-step-00001500.png")
    uploader = Uploader(run, link, OPENING)
    uploader.sync()
    sent = client(link.uri).list_artifacts(uploader.sent.run_id, "images")
    whole = [entry.path for entry in sent if entry.path.endswith(".png")]
    assert len(whole) == 3
    steps = {word for path in whole for word in path.replace("%", "+").split("+")}
    assert {"500", "1000", "1500"} <= steps


def test_closing_sends_the_rest_ends_the_run_and_keeps_the_model(link, run):
    (run.path / "model").mkdir()
    (run.path / "model" / "config.json").write_text("{}")
    tracker = Tracker(run, link, OPENING, writes=True)
    tracker.log(1, {"loss/model": 1.0})
    tracker.pictures(1, {"samples": Image.new("RGB", (4, 4))})
    tracker.close("FINISHED", {"model": run.model, "absent": run.path / "absent"})
    uploader = Uploader(run, link, OPENING)
    assert history(link, uploader) == [(1, 1.0)]
    found = client(link.uri)
    assert found.get_run(uploader.sent.run_id).info.status == "FINISHED"
    kept = found.list_artifacts(uploader.sent.run_id, "model")
    assert [entry.path for entry in kept] == ["model/config.json"]
    assert uploader.sent.images == ["samples-step-00000001.png"]


def test_a_process_that_does_not_write_leaves_nothing(link, run):
    tracker = Tracker(run, link, OPENING, writes=False)
    tracker.log(1, {"loss/model": 1.0})
    tracker.pictures(1, {"samples": Image.new("RGB", (4, 4))})
    tracker.close("FINISHED", {})
    assert [path.name for path in run.path.rglob("*")] == ["previews"]


@pytest.fixture(params=["closed port", "silence"])
def dead(request, monkeypatch) -> Iterator[Link]:
    """A server that refuses connections, and one that takes them and says nothing."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param == "silence":
            server.listen()
        yield Link(f"http://user:secret@127.0.0.1:{server.getsockname()[1]}", "tests")


def test_a_server_that_does_not_answer_delays_nothing_and_gets_all_later(
    dead, link, run, write, caplog
):
    tracker = Tracker(run, dead, OPENING, writes=True)
    time.sleep(1.2)  # the thread is waiting for the server now
    slowest = 0.0
    for step in (1, 2, 3):
        began = time.monotonic()
        tracker.log(step, {"loss/model": 1 / step})
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.5
    began = time.monotonic()
    tracker.close("FINISHED", {})
    assert time.monotonic() - began < 30
    assert "the record is complete in" in caplog.messages[-1]
    assert "secret" not in caplog.text
    later = Uploader(run, link, OPENING)
    later.sync()
    assert history(link, later) == expected(1, 2, 3)


def test_a_pipeline_goes_on_without_a_server_that_does_not_answer(dead, tmp_path, caplog):
    assert open_parent(tmp_path, dead, OPENING) is None
    assert not list(tmp_path.iterdir())
    assert "secret" not in caplog.text


def test_a_parent_is_opened_once(link, tmp_path):
    first = open_parent(tmp_path, link, OPENING)
    assert first
    assert open_parent(tmp_path, link, OPENING) == first


def test_no_password_is_written_down(link, run, write, monkeypatch):
    behind = client(link.uri)
    monkeypatch.setattr(tracking, "client", lambda _: behind)
    write(1)
    secret = Link("https://user:secret@tracking.example/mlflow", "tests of passwords")
    Uploader(run, secret, OPENING).sync()
    state = json.loads((run.path / "tracking.json").read_text())
    assert sorted(state) == ["artifacts", "images", "metrics_bytes", "run_id"]
    for path in (path for path in run.path.rglob("*") if path.is_file()):
        assert b"secret" not in path.read_bytes(), path
    kept = behind.get_run(state["run_id"]).to_dictionary()
    assert "secret" not in json.dumps(kept, default=str)


def test_the_store_is_beside_the_runs_unless_the_environment_names_one(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert tracking.default_uri(Path("runs")) == "http://server:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking.default_uri(Path("runs")) == f"sqlite:///{Path('runs').resolve()}/mlflow.db"
