"""MLflow, and the only file that imports it.

A run first writes its record and metrics to disk (trainer/tracking/run_log.py). An uploader sends
what MLflow has not acknowledged yet, each item once, from any process at any time.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
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
    RECORD_FILE,
    STATE_FILE,
    RunRecord,
    TrackingConfig,
    UploadState,
    read_run_record,
    read_upload_state,
    write_upload_state,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = logging.getLogger(__name__)
CLIENT_ENVIRONMENT = {  # an unreachable server costs seconds, not the default's minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # a repeated request could make a second run
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password in it
    "GIT_PYTHON_REFRESH": "quiet",
}
ARTIFACT_TIMEOUT = 60.0
BATCH = 1000  # metrics that MLflow takes in a request
LOCK_SECONDS = 20.0


def default_uri(runs: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or a sqlite file under the runs directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs.resolve()}/mlflow.db"


@dataclass
class UploadSummary:
    """What one `sync` sent."""

    run_id: str
    created: bool = False
    steps: int = 0
    images: int = 0
    artifacts: int = 0
    samples: int = 0


class Uploader:
    """Uploads what MLflow has not yet acknowledged of a run."""

    def __init__(self, directory: RunDirectory, tracking: TrackingConfig) -> None:
        self._directory, self._tracking = directory, tracking
        self._images_verified = False
        """Whether the acknowledged images are known to be all that MLflow has."""

    @cached_property
    def _client(self) -> "MlflowClient":
        return make_client(self._tracking.uri)

    def sync(self, wait: float = LOCK_SECONDS) -> UploadSummary:
        """Send what is new: parameters, metrics, images; at the end also artifacts and status.

        Raises:
            TrackingError: MLflow refused a request, or another process holds the lock too long.
        """
        lock, store = (
            self._directory.path / "tracking.lock",
            read_upload_state(self._directory.path).store,
        )
        with explain_errors(self._tracking.uri, store), file_lock(lock, wait):
            record = read_run_record(self._directory.path)
            if record is None:
                raise TrackingError(
                    f"{self._directory.path}: has no run record yet; start the run first"
                )
            try:
                return self._send(record, read_upload_state(self._directory.path))
            except BaseException:
                self._images_verified = False
                raise

    def _send(self, record: RunRecord, state: UploadState) -> UploadSummary:
        mlflow, created = self._client, state.run_id is None
        parent = self._parent_id
        if state.run_id is None:
            state.run_id = open_run(mlflow, self._tracking, record, parent)
            state.store = redact(self._tracking.uri)
            self._save_state(state)
        summary = UploadSummary(state.run_id, created=created)
        if record.status == "RUNNING":
            self._set_status(state.run_id, record, state)
        self._log_params(state.run_id, record, state)
        self._send_metrics(state, summary)
        self._send_images(state, summary)
        if record.status != "RUNNING":
            self._send_artifacts(record, state, summary)
            self._set_status(state.run_id, record, state)
        return summary

    def _save_state(self, state: UploadState) -> None:
        write_upload_state(self._directory.path, state)

    @cached_property
    def _parent_id(self) -> str | None:
        """The id of the pipeline's run, which is created or updated by the first to need it."""
        if self._tracking.root is None:
            return None
        tracking = replace(self._tracking, root=None)
        return Uploader(RunDirectory(self._tracking.root), tracking).sync().run_id

    def _log_params(self, run_id: str, record: RunRecord, state: UploadState) -> None:
        """Send new parameters, tags and the data set."""
        from mlflow.entities import Dataset, DatasetInput, Param, RunTag

        params = [Param(key, value) for key, value in record.params.items()]
        params = [param for param in params if param.key not in state.params]
        for first in range(0, len(params), 100):
            chunk = params[first : first + 100]
            self._client.log_batch(run_id, params=chunk, synchronous=True)
            state.params += [param.key for param in chunk]
            self._save_state(state)
        tags = {key: value for key, value in record.tags.items() if state.tags.get(key) != value}
        if tags:
            new = [RunTag(key, value) for key, value in tags.items()]
            self._client.log_batch(run_id, tags=new, synchronous=True)
            state.tags |= tags
            self._save_state(state)
        if record.dataset and not state.dataset:
            name, digest, source = record.dataset
            dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=source)
            self._client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset)])
            state.dataset = True
            self._save_state(state)

    def _set_status(self, run_id: str, record: RunRecord, state: UploadState) -> None:
        if (record.status, record.ended) == (state.status, state.ended):
            return
        if record.ended is None:
            self._client.update_run(run_id, status=record.status)
        else:
            self._client.set_terminated(run_id, record.status, int(record.ended * 1000))
        state.status, state.ended = record.status, record.ended
        self._save_state(state)

    def _send_metrics(self, state: UploadState, summary: UploadSummary) -> None:
        lines = read_lines(self._directory.metrics, state.metrics_bytes)
        for metrics, size, steps in metric_batches(lines, ""):
            log_metrics(self._client, summary.run_id, metrics)
            state.metrics_bytes += size
            summary.steps += steps
            self._save_state(state)

    def _send_images(self, state: UploadState, summary: UploadSummary) -> None:
        new = [
            path
            for path in sorted(self._directory.previews.glob("*-step-*.png"))
            if path.name not in state.images
        ]
        existing: list[str] = []
        if new and not self._images_verified and not summary.created:
            existing = [
                entry.path for entry in self._client.list_artifacts(summary.run_id, "images")
            ]
        for path in new:
            key, _, step = path.stem.partition("-step-")
            prefix = f"images/{key}+step+{int(step)}+"  # its small copy is sent last
            if not any(each.startswith(prefix) and each.endswith(".webp") for each in existing):
                milliseconds = int(path.stat().st_mtime * 1000)
                with Image.open(path) as image:
                    self._client.log_image(
                        summary.run_id,
                        image.convert("RGB"),
                        key=key,
                        step=int(step),
                        timestamp=milliseconds,
                        synchronous=True,
                    )
                summary.images += 1
            state.images.append(path.name)
            self._save_state(state)
        self._images_verified = True

    def _send_artifacts(
        self, record: RunRecord, state: UploadState, summary: UploadSummary
    ) -> None:
        with request_timeout(ARTIFACT_TIMEOUT):
            for name, where in record.artifacts.items():
                for path, folder in artifact_files(self._directory.path / where, name):
                    key, changed = f"{folder}/{path.name}", path.stat().st_mtime_ns
                    if state.artifacts.get(key) != changed:
                        self._client.log_artifact(summary.run_id, str(path), folder)
                        state.artifacts[key] = changed
                        summary.artifacts += 1
                        self._save_state(state)


class NodeMetricsUploader:
    """Uploads a node's system metrics to an existing run; creates none."""

    def __init__(self, directory: Path, tracking: TrackingConfig, host: str) -> None:
        self._directory, self._tracking, self._host = directory, tracking, host
        self._path = directory / "system" / f"{host}.jsonl"

    @cached_property
    def _client(self) -> "MlflowClient":
        return make_client(self._tracking.uri)

    def sync(self, wait: float = 0.0) -> int:
        """Send new samples once the run exists; returns how many."""
        run_id = read_upload_state(self._directory).run_id
        state = self._path.with_name(f"{self._host}.sent")
        lock = self._path.with_name(f"{self._host}.lock")
        with explain_errors(self._tracking.uri, None), file_lock(lock, wait):
            offset = int(state.read_text(encoding="utf-8")) if state.is_file() else 0
            lines = read_lines(self._path, offset)
            if run_id is None or not lines:
                return 0
            for metrics, size, _ in metric_batches(lines, f"system/{self._host}/"):
                log_metrics(self._client, run_id, metrics)
                offset += size
                write_json(state, offset)
        return len(lines)


def metric_batches(lines: list[bytes], prefix: str) -> Iterator[tuple[list["Metric"], int, int]]:
    """Batches of MLflow metrics from JSON lines, each with its size in bytes and number of lines.

    Metrics keep their measurement time, by which MLflow recognises repeated ones.
    """
    from mlflow.entities import Metric

    chunk: list[Metric] = []
    size = count = 0
    for number, line in enumerate(lines):
        entry = json.loads(line)
        milliseconds = int(entry["time"] * 1000)
        chunk += [
            Metric(f"{prefix}{name}", value, milliseconds, entry["step"])
            for name, value in entry["metrics"].items()
        ]
        size, count = size + len(line), count + 1
        if len(chunk) > BATCH // 2 or number == len(lines) - 1:
            yield chunk, size, count
            chunk, size, count = [], 0, 0


def log_metrics(mlflow: "MlflowClient", run_id: str, metrics: list["Metric"]) -> None:
    """Send metrics in as many requests as they need."""
    for first in range(0, len(metrics), BATCH):
        mlflow.log_batch(run_id, metrics=metrics[first : first + BATCH], synchronous=True)


def artifact_files(path: Path, folder: str) -> Iterator[tuple[Path, str]]:
    """The files of an artifact and the folder of each, without tracking's own files."""
    if path.is_file():
        yield path, folder
    elif path.is_dir():
        own = {RECORD_FILE, STATE_FILE, "tracking.lock", "lock", "progress.json"}
        for each in sorted(path.iterdir()):
            if each.name not in own and each.name != "system" and not each.name.startswith("."):
                yield from artifact_files(
                    each, f"{folder}/{each.name}" if each.is_dir() else folder
                )


def configure_mlflow() -> None:
    """Import MLflow with bounded timeouts; it takes seconds, so not in a thread."""
    for name, value in CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def make_client(uri: str) -> "MlflowClient":
    """An MLflow client with bounded timeouts; an sqlite store is created at its first use.

    Raises:
        TrackingError: the URI is not an address.
    """
    check_uri(uri)
    configure_mlflow()
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri)


def open_run(
    mlflow: "MlflowClient", tracking: TrackingConfig, record: RunRecord, parent: str | None
) -> str:
    """The id of a record's MLflow run; created unless an unacknowledged request has done so."""
    experiment = experiment_id(mlflow, tracking.uri, record.experiment or tracking.experiment)
    created = mlflow.search_runs(
        [experiment], f"tags.`mezzotint.id` = '{record.id}'", max_results=1
    )
    if created:
        return str(created[0].info.run_id)
    tags = {"mlflow.runName": record.name, "mezzotint.id": record.id}
    if parent:
        tags["mlflow.parentRunId"] = parent
    start = int(record.started * 1000)
    return str(mlflow.create_run(experiment, start_time=start, tags=tags).info.run_id)


def experiment_id(mlflow: "MlflowClient", uri: str, name: str) -> str:
    """The id of an experiment, which is created at its first run."""
    from mlflow.exceptions import MlflowException

    found = mlflow.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    artifacts = None
    if uri.startswith("sqlite:///"):
        artifacts = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    try:
        return str(mlflow.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)  # created by another run meanwhile


@contextmanager
def explain_errors(uri: str, store: str | None) -> Iterator[None]:
    """Turn any exception of MLflow's client into a TrackingError without credentials."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - requests, urllib3, SQLAlchemy and MLflow have their own
        raise TrackingError(explain(error, uri, store)) from None


@contextmanager
def request_timeout(seconds: float) -> Iterator[None]:
    """Raise MLflow's request timeout: a server stores a large file before it responds."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    os.environ[name] = str(int(max(seconds, float(before))))
    try:
        yield
    finally:
        os.environ[name] = before
