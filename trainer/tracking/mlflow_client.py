"""MLflow, and the only file that imports it.

A run says on disk what it is and what it measures (trainer/tracking/run_log.py) before anything
else. What is here sends MLflow what it has not acknowledged of that, each thing once, whoever calls
it and when.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mezzotint.common.errors import UserError
from mezzotint.common.files import read_lines, write_json
from mezzotint.common.locks import file_lock
from mezzotint.common.storage_errors import redact
from trainer.run import RunDirectory
from trainer.tracking.errors import TrackingError, check_uri, explain
from trainer.tracking.run_log import (
    OPENING,
    SENT,
    RunRecord,
    TrackingConfig,
    UploadState,
    read_account,
    read_sent,
    write_sent,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)
BOUNDS = {  # a dead server costs seconds, not the default's minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a repeated request could make a second run
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password in it
    "GIT_PYTHON_REFRESH": "quiet",
}
ARTIFACT_TIMEOUT = 60.0
BATCH = 1000  # metrics that MLflow takes in a request
LOCK_WAIT = 20.0


def default_uri(runs: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or a sqlite file under the runs directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs.resolve()}/mlflow.db"


@dataclass
class UploadSummary:
    """What was sent in one go."""

    run_id: str
    opened: bool = False
    steps: int = 0
    pictures: int = 0
    artifacts: int = 0
    samples: int = 0


class Uploader:
    """Brings a run's MLflow state up to what it says of itself on disk."""

    def __init__(self, directory: RunDirectory, link: TrackingConfig) -> None:
        self._directory, self._link = directory, link
        self._client: MlflowClient | None = None
        self._parent: str | None = None
        self._certain = False  # that the pictures acknowledged are all that MLflow has

    def sync(self, wait: float = LOCK_WAIT) -> UploadSummary:
        """Send what is new: opening, metrics, pictures, and the end when it has come.

        Raises:
            Refused: what MLflow answers, in a sentence; or another process sends for too long.
        """
        lock, store = self._directory.path / "tracking.lock", read_sent(self._directory.path).store
        with explained(self._link.uri, store), file_lock(lock, wait):
            account = read_account(self._directory.path)
            if account is None:
                raise TrackingError(f"{self._directory.path}: has recorded nothing for MLflow yet")
            if self._client is None:
                self._client = client(self._link.uri)
            try:
                return self._send(self._client, account, read_sent(self._directory.path))
            except BaseException:
                self._certain = False
                raise

    def _send(self, mlflow: "MlflowClient", account: RunRecord, sent: UploadState) -> UploadSummary:
        delivery = UploadSummary(sent.run_id or "")
        if sent.run_id is None:
            sent.run_id = open_run(mlflow, self._link, account, self._parent_id())
            sent.store = redact(self._link.uri)
            delivery = UploadSummary(sent.run_id, opened=True)
            self._keep(sent)
        elif self._link.root:
            self._parent_id()
        if account.status == "RUNNING":
            self._tell_status(mlflow, account, sent)
        self._tell(mlflow, account, sent)
        self._send_metrics(mlflow, sent, delivery)
        self._send_pictures(mlflow, sent, delivery)
        if account.status != "RUNNING":
            self._send_artifacts(mlflow, account, sent, delivery)
            self._tell_status(mlflow, account, sent)
        return delivery

    def _keep(self, sent: UploadState) -> None:
        write_sent(self._directory.path, sent)

    def _parent_id(self) -> str | None:
        """The pipeline's run, made or brought up to date by whoever comes first."""
        if self._link.root and self._parent is None:
            pipeline = Uploader(RunDirectory(self._link.root), replace(self._link, root=None))
            self._parent = pipeline.sync().run_id
        return self._parent

    def _tell(self, mlflow: "MlflowClient", account: RunRecord, sent: UploadState) -> None:
        """Parameters, tags and data set, as far as they are new."""
        from mlflow.entities import Dataset, DatasetInput, Param, RunTag

        assert sent.run_id is not None
        params = [Param(key, value) for key, value in account.params.items()]
        params = [param for param in params if param.key not in sent.params]
        for first in range(0, len(params), 100):
            some = params[first : first + 100]
            mlflow.log_batch(sent.run_id, params=some, synchronous=True)
            sent.params += [param.key for param in some]
            self._keep(sent)
        tags = {key: value for key, value in account.tags.items() if sent.tags.get(key) != value}
        if tags:
            new = [RunTag(key, value) for key, value in tags.items()]
            mlflow.log_batch(sent.run_id, tags=new, synchronous=True)
            sent.tags |= tags
            self._keep(sent)
        if account.dataset and not sent.dataset:
            name, digest, source = account.dataset
            dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=source)
            mlflow.log_inputs(sent.run_id, datasets=[DatasetInput(dataset=dataset)])
            sent.dataset = True
            self._keep(sent)

    def _tell_status(self, mlflow: "MlflowClient", account: RunRecord, sent: UploadState) -> None:
        if (account.status, account.ended) == (sent.status, sent.ended):
            return
        assert sent.run_id is not None
        if account.ended is None:
            mlflow.update_run(sent.run_id, status=account.status)
        else:
            mlflow.set_terminated(sent.run_id, account.status, int(account.ended * 1000))
        sent.status, sent.ended = account.status, account.ended
        self._keep(sent)

    def _send_metrics(
        self, mlflow: "MlflowClient", sent: UploadState, delivery: UploadSummary
    ) -> None:
        assert sent.run_id is not None
        lines = read_lines(self._directory.metrics, sent.metrics_bytes)
        for metrics, size, steps in batches(lines, ""):
            log_metrics(mlflow, sent.run_id, metrics)
            sent.metrics_bytes += size
            delivery.steps += steps
            self._keep(sent)

    def _send_pictures(
        self, mlflow: "MlflowClient", sent: UploadState, delivery: UploadSummary
    ) -> None:
        assert sent.run_id is not None
        new = [
            path
            for path in sorted(self._directory.previews.glob("*-step-*.png"))
            if path.name not in sent.images
        ]
        there: list[str] = []
        if new and not self._certain and not delivery.opened:
            there = [entry.path for entry in mlflow.list_artifacts(sent.run_id, "images")]
        for path in new:
            key, _, step = path.stem.partition("-step-")
            begins = f"images/{key}+step+{int(step)}+"  # its small copy is sent last
            if not any(each.startswith(begins) and each.endswith(".webp") for each in there):
                stamp = int(path.stat().st_mtime * 1000)
                with Image.open(path) as image:
                    mlflow.log_image(
                        sent.run_id,
                        image.convert("RGB"),
                        key=key,
                        step=int(step),
                        timestamp=stamp,
                        synchronous=True,
                    )
                delivery.pictures += 1
            sent.images.append(path.name)
            self._keep(sent)
        self._certain = True

    def _send_artifacts(
        self, mlflow: "MlflowClient", account: RunRecord, sent: UploadState, delivery: UploadSummary
    ) -> None:
        assert sent.run_id is not None
        with patience(ARTIFACT_TIMEOUT):
            for name, where in account.artifacts.items():
                for path, folder in files(self._directory.path / where, name):
                    key, changed = f"{folder}/{path.name}", path.stat().st_mtime_ns
                    if sent.artifacts.get(key) != changed:
                        mlflow.log_artifact(sent.run_id, str(path), folder)
                        sent.artifacts[key] = changed
                        delivery.artifacts += 1
                        self._keep(sent)


class LoadUploader:
    """Sends a node's load to the run whose id lies in the run directory; makes no run."""

    def __init__(self, directory: Path, link: TrackingConfig, host: str) -> None:
        self._directory, self._link, self._host = directory, link, host
        self._lines = directory / "system" / f"{host}.jsonl"
        self._client: MlflowClient | None = None

    def sync(self, wait: float = 0.0) -> int:
        """Send the samples that are new, once the run is there; returns how many."""
        run_id = read_sent(self._directory).run_id
        state = self._lines.with_name(f"{self._host}.sent")
        lock = self._lines.with_name(f"{self._host}.lock")
        with explained(self._link.uri, None), file_lock(lock, wait):
            place = int(state.read_text(encoding="utf-8")) if state.is_file() else 0
            lines = read_lines(self._lines, place)
            if run_id is None or not lines:
                return 0
            if self._client is None:
                self._client = client(self._link.uri)
            for metrics, size, _ in batches(lines, f"system/{self._host}/"):
                log_metrics(self._client, run_id, metrics)
                place += size
                write_json(state, place)
        return len(lines)


def batches(lines: list[bytes], prefix: str) -> Iterator[tuple[list["Metric"], int, int]]:
    """Lines of a record as MLflow's metrics: some at a time, their size in bytes and their number.

    They keep the time at which they were measured, so MLflow knows a repeated one.
    """
    from mlflow.entities import Metric

    some: list[Metric] = []
    size = count = 0
    for number, line in enumerate(lines):
        entry = json.loads(line)
        stamp = int(entry["time"] * 1000)
        some += [
            Metric(f"{prefix}{name}", value, stamp, entry["step"])
            for name, value in entry["metrics"].items()
        ]
        size, count = size + len(line), count + 1
        if len(some) > BATCH // 2 or number == len(lines) - 1:
            yield some, size, count
            some, size, count = [], 0, 0


def log_metrics(mlflow: "MlflowClient", run_id: str, metrics: list["Metric"]) -> None:
    """Send metrics in as many requests as they need."""
    for first in range(0, len(metrics), BATCH):
        mlflow.log_batch(run_id, metrics=metrics[first : first + BATCH], synchronous=True)


def files(path: Path, folder: str) -> Iterator[tuple[Path, str]]:
    """The files of an artifact and the folder each lies in; not what tracking itself writes."""
    if path.is_file():
        yield path, folder
    elif path.is_dir():
        own = {OPENING, SENT, "tracking.lock", "lock", "progress.json"}
        for each in sorted(path.iterdir()):
            if each.name not in own and each.name != "system" and not each.name.startswith("."):
                yield from files(each, f"{folder}/{each.name}" if each.is_dir() else folder)


def prepare() -> None:
    """Import MLflow with bounded waiting: seconds, so not in a thread beside other imports."""
    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def client(uri: str) -> "MlflowClient":
    """An MLflow client with bounded waiting; an sqlite store is created at its first use.

    Raises:
        Refused: the URI is no address.
    """
    check_uri(uri)
    prepare()
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri)


def open_run(
    mlflow: "MlflowClient", link: TrackingConfig, account: RunRecord, parent: str | None
) -> str:
    """The id of an account's run; made where an earlier try has not made it unheard."""
    experiment = experiment_id(mlflow, link.uri, account.experiment or link.experiment)
    made = mlflow.search_runs([experiment], f"tags.`mezzotint.id` = '{account.id}'", max_results=1)
    if made:
        found: str = made[0].info.run_id
        return found
    tags = {"mlflow.runName": account.name, "mezzotint.id": account.id}
    if parent:
        tags["mlflow.parentRunId"] = parent
    start = int(account.started * 1000)
    run_id: str = mlflow.create_run(experiment, start_time=start, tags=tags).info.run_id
    return run_id


def experiment_id(mlflow: "MlflowClient", uri: str, name: str) -> str:
    """The id of an experiment, made at its first run."""
    from mlflow.exceptions import MlflowException

    found = mlflow.get_experiment_by_name(name)
    if found:
        known: str = found.experiment_id
        return known
    artifacts = None
    if uri.startswith("sqlite:///"):
        artifacts = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    try:
        made: str = mlflow.create_experiment(name, artifact_location=artifacts)
        return made
    except MlflowException:
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)  # another run was faster


@contextmanager
def explained(uri: str, store: str | None) -> Iterator[None]:
    """Turn whatever MLflow's client raises into a sentence without a password."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - requests, urllib3, SQLAlchemy and MLflow have their own
        raise TrackingError(explain(error, uri, store)) from None


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Wait at least so long for an answer: a server stores a large file before it answers."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    os.environ[name] = str(int(max(seconds, float(before))))
    try:
        yield
    finally:
        os.environ[name] = before
