"""Runs against a real MLflow server: interrupted, on two nodes, with the server frozen or gone."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from launch.parents import open_parent, resume, settle
from launch.pipeline import load as load_pipeline
from launch.runner import Runner
from launch.runner import run as run_pipeline
from launch.staging import run_stage
from launch.syncing import sync
from launch.training import free_port, wait
from trainer.errors import TrainError
from trainer.recipe import load as load_recipe
from trainer.record import Link, Opening, begin, end, read_account, read_metrics, read_sent
from trainer.run import RunDirectory
from trainer.tracker import Tracker
from trainer.tracking import Uploader

# SQLAlchemy, alembic and requests warn about how MLflow uses them.
pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore")]
STEPS = 40
TRAIN = ["train", "recipes/emoji_dvae.yaml", f"steps={STEPS}", "batch=8", "model.width=32"]
TRAIN += ["model.first=32", "model.vocab=64", "engine.precision=fp32", "log.every=1"]
TRAIN += ["checkpoint.every=10", "log.previews=20"]
CANARY = "Canary7PassWordThatNobodyMayEverPrint"
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


def mezzotint(*words: object, **variables: str) -> "subprocess.Popen[str]":
    """A command of a user, just started."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *map(str, words)],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit code and output of a command."""
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def until(condition: Callable[[], object], seconds: float = 90) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def found(client: MlflowClient, directory: Path) -> Run:
    """The MLflow run of a directory."""
    run_id = read_sent(directory).run_id
    assert run_id is not None
    return client.get_run(run_id)


def steps(client: MlflowClient, directory: Path, name: str = "loss/model") -> list[int]:
    """The steps MLflow has of a metric, in the order of their time."""
    history = client.get_metric_history(found(client, directory).info.run_id, name)
    return [metric.step for metric in sorted(history, key=lambda metric: metric.timestamp)]


def runs_named(client: MlflowClient, experiment: str) -> list[Run]:
    """All runs of an experiment."""
    identifier = client.get_experiment_by_name(experiment).experiment_id
    return list(client.search_runs([identifier]))


def test_an_interrupted_run_is_one_run_though_the_server_froze_and_died_meanwhile(
    server, client, tmp_path
):
    """One story, since each start of training costs seconds: see the comments for its chapters."""
    run = tmp_path / "emoji_dvae"
    words = [*TRAIN, "--runs", tmp_path]
    chapter = {"MEZZOTINT_EXPERIMENT": "interrupted"}

    # the first attempt is told to leave in mid-run
    first = mezzotint(*words, **chapter)
    until(lambda: len(read_metrics(run / "metrics.jsonl")) > 3 or first.poll())
    first.send_signal(signal.SIGTERM)
    code, output = ended(first)
    assert code == 75, output
    before = found(client, run)
    assert before.info.status == "KILLED"
    reached = read_metrics(run / "metrics.jsonl")[-1]["step"]
    assert 0 < reached < STEPS
    assert steps(client, run) == list(range(1, reached + 1))

    # during the second one the same run is running again, until the server freezes
    second = mezzotint(*words, **chapter)
    until(lambda: found(client, run).info.status == "RUNNING")
    server.freeze()
    until(lambda: (run / "summary.json").is_file())
    finished = time.monotonic()
    code, output = ended(second)
    frozen_seconds = time.monotonic() - finished
    assert code == 0, output
    assert "does not answer in time" in output
    assert "mezzotint tracking sync" in output
    assert frozen_seconds < 30
    gaps = [line["time"] for line in read_metrics(run / "metrics.jsonl")]
    slowest = max(
        late - early for early, late in zip(gaps[reached:], gaps[reached + 1 :], strict=False)
    )
    assert slowest < 4.0  # as long as each request waits for the frozen server

    # the server dies; what it missed cannot be sent yet, and is sent when it is back
    server.thaw()
    server.stop()
    code, output = ended(mezzotint("tracking", "sync", run))
    assert code == 2
    assert output.startswith("error: nothing listens where the MLflow server at")
    assert len(output.splitlines()) == 1
    server.start()
    code, output = ended(mezzotint("tracking", "sync", run, "--json"))
    assert code == 0, output
    (report,) = json.loads(output)["runs"]
    assert report["run_id"] == before.info.run_id
    assert report["artifacts"] > 0
    assert report["steps"] > 0
    assert steps(client, run) == list(range(1, STEPS + 1))
    after = found(client, run)
    assert after.info.status == "FINISHED"
    assert after.data.params == before.data.params
    assert (before.data.tags["mezzotint.restarts"], after.data.tags["mezzotint.restarts"]) == (
        "0",
        "1",
    )
    assert len(runs_named(client, "interrupted")) == 1
    pictures = client.list_artifacts(after.info.run_id, "images")
    assert len([entry for entry in pictures if entry.path.endswith(".png")]) == 2 * 2
    assert "nothing was missing" in sync(run).to_text()
    assert steps(client, run) == list(range(1, STEPS + 1))


def test_every_node_s_load_is_under_the_one_run_that_the_first_process_made(
    server, client, tmp_path
):
    run = RunDirectory(tmp_path / "nodes")
    run.claim(load_recipe(TRAIN[1], [*TRAIN[2:], "steps=6", "log.previews=null"]))
    shared = {
        **os.environ,
        "MEZZOTINT_EXPERIMENT": "two nodes",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "launch.worker", str(run.path)],
            env={**shared, "RANK": str(rank), "SLURMD_NODENAME": f"node{rank}"},
        )
        for rank in range(2)
    ]
    assert wait(ranks) == 0
    (only,) = runs_named(client, "two nodes")
    assert only.info.status == "FINISHED"
    assert only.data.tags["mezzotint.processes"] == "2"
    sync(run.path)  # the last samples of the other node may have come before the run had an id
    names = {"cpu_utilization_percentage", "network_receive_megabytes", "disk_usage_percentage"}
    kept = client.get_run(only.info.run_id).data.metrics
    for host in ("node0", "node1"):
        assert {f"system/{host}/{name}" for name in names} <= set(kept)
        seconds = steps(client, run.path, f"system/{host}/system_memory_usage_percentage")
        assert seconds == sorted(set(seconds))


MEET = """
import sys
from pathlib import Path
from launch.training import link_from_environment
from trainer.recipe import load as load_recipe
from trainer.record import Opening, begin
from trainer.run import RunDirectory
from trainer.tracking import Uploader, prepare
root, stage = Path(sys.argv[1]), sys.argv[2]
(root / stage).mkdir()
begin(root / stage, root.name, Opening(stage))
prepare()
(root / f"{stage}.ready").touch()
while not (root / "go").exists(): pass
Uploader(RunDirectory(root / stage), link_from_environment(root=root)).sync()
"""


def test_a_parent_that_could_not_be_made_at_the_start_is_made_once_by_whoever_comes_first(
    server, client, tmp_path, caplog
):
    root = tmp_path / "gathered"
    root.mkdir()
    dead = Link("http://127.0.0.1:1", "gathered")
    open_parent(root, dead)
    assert "nothing listens" in caplog.text
    assert read_sent(root).run_id is None
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


def test_the_parent_is_running_failed_and_finished_as_its_stages_are(
    server, client, pipeline, tmp_path
):
    root = pipeline("states", str(tmp_path / "missing"))
    link = Link(server.url, "states", root)
    run_stage(root, "first")
    assert found(client, root).info.status == "RUNNING"
    assert found(client, root / "first").info.status == "FINISHED"
    with pytest.raises(Exception, match="missing"):
        run_stage(root, "second")
    assert found(client, root).info.status == "FAILED"
    assert found(client, root / "second").info.status == "FAILED"
    pipeline("states", "data/emoji")
    resume(root, link, "second")
    assert read_account(root).status == "RUNNING"
    settle(root, link)
    assert found(client, root).info.status == "RUNNING"
    run_stage(root, "second")
    assert found(client, root).info.status == "FINISHED"
    assert found(client, root / "second").info.status == "FINISHED"
    assert len(runs_named(client, "states")) == 3


def test_in_a_job_a_stage_that_will_be_queued_again_leaves_the_parent_running(
    server, client, pipeline, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("launch.staging.execute", lambda *_: 1 / 0)
    root = pipeline("queued", "data/emoji")
    with pytest.raises(ZeroDivisionError):
        run_stage(root, "first")
    assert found(client, root).info.status == "RUNNING"
    assert found(client, root / "first").data.tags["mezzotint.jobs"] == "7"
    settle(root, Link(server.url, "queued", root), {"first": "FAILED"})  # the job gives up
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


@dataclass(frozen=True)
class Gate:
    """A reverse proxy before the server."""

    port: int

    def url(self, userinfo: str = "") -> str:
        """Its address, with or without user and password."""
        return f"http://{userinfo}127.0.0.1:{self.port}"


@contextmanager
def gate(server: str, *, host: str | None = None, password: str | None = None) -> Iterator[Gate]:
    """Hand requests on, under another host name, or only those that come with a password."""
    token = base64.b64encode(f"canary:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline()
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if password and self.headers.get("Authorization") != f"Basic {token}":
                self.answer(401, b"You are not authenticated")
                return
            headers = {key: value for key, value in self.headers.items() if key != "Host"}
            if host:
                headers["Host"] = host
            request = urllib.request.Request(
                server + self.path, body or None, headers, method=self.command
            )
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    self.answer(response.status, response.read())
            except urllib.error.HTTPError as error:
                self.answer(error.code, error.read())

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield Gate(proxy.server_port)
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


@pytest.fixture
def recorded(tmp_path) -> Path:
    """A run that has something to send."""
    run = tmp_path / "recorded"
    run.mkdir()
    begin(run, "refused", Opening("recorded", {"a": 1}))
    end(run, "FINISHED")
    return run


def test_a_server_that_refuses_its_host_name_is_named_with_the_option_that_mends_it(
    server, recorded, monkeypatch
):
    with gate(server.url, host="tracking.example:5000") as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url("canary:" + CANARY + "@"))
        with pytest.raises(TrainError) as refused:
            sync(recorded)
    message = str(refused.value)
    assert "Invalid Host header" in message
    assert f"--allowed-hosts 127.0.0.1:{proxy.port}" in message
    assert CANARY not in message


def test_a_wrong_password_is_a_warning_in_training_and_never_shown(
    server, tmp_path, monkeypatch, caplog
):
    with gate(server.url, password="right") as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url("canary:" + CANARY + "@"))
        link = Link(proxy.url("canary:" + CANARY + "@"), "refused")
        run = RunDirectory(tmp_path / "run")
        run.path.mkdir()
        tracker = Tracker(run, link, Opening("run"), writes=True, samples=True)
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


def test_sync_sends_a_whole_pipeline_that_no_server_ever_heard_of(
    server, client, pipeline, monkeypatch
):
    root = pipeline("unheard", "data/emoji")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for stage in ("first", "second"):
        run_stage(root, stage)
    assert not list(root.rglob("tracking.json"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    report = sync(root)
    assert [Path(name).name for name in report.runs] == ["unheard", "first", "second"]
    assert all(delivery.opened for delivery in report.runs.values())
    runs = runs_named(client, "unheard")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert found(client, root / "second").data.tags["mlflow.parentRunId"]
    kept = client.list_artifacts(found(client, root / "second").info.run_id, "model")
    assert [entry.path for entry in kept] == ["model/tokenizer.model"]


def test_a_run_that_another_server_knows_is_not_mixed_up(server, recorded, monkeypatch):
    state = {"run_id": "0" * 32, "store": "http://elsewhere:5000"}
    (recorded / "tracking.json").write_text(json.dumps(state))
    with pytest.raises(TrainError, match="elsewhere:5000"):
        sync(recorded)


def test_two_that_send_at_once_send_each_step_once(server, client, tmp_path):
    run = RunDirectory(tmp_path / "at once")
    run.path.mkdir()
    tracker = Tracker(run, None, Opening("at once"), writes=True, samples=False)
    for step in range(1, 200):
        tracker.log(step, {"loss/model": 1 / step})
    tracker.close("FINISHED")
    link = Link(server.url, "at once")
    senders = [threading.Thread(target=lambda: Uploader(run, link).sync()) for _ in range(3)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert steps(client, run.path) == list(range(1, 200))
    assert len(runs_named(client, "at once")) == 1
