"""Tracking: a local record first, MLflow second. The only file that imports mlflow.

Metrics are appended to `metrics.jsonl` and synced to disk before anything else. A background thread
sends MLflow what the local record has beyond the last acknowledged place, so a server that is slow,
down or restarted never delays a step, and what it missed is sent later by the same code.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
from PIL import Image

from trainer.recipe import flatten
from trainer.run import RunDirectory, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
Status = Literal["FINISHED", "FAILED", "KILLED"]
BOUNDS = {  # a dead server costs seconds, not the default's minutes (urllib3 backs off in between)
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
BATCH = 900  # MLflow takes at most 1,000 metrics a request
VALUE_LIMIT = 500


@dataclass(frozen=True)
class Link:
    """Where a run is tracked. The URI may hold a password: it is never written down."""

    uri: str
    experiment: str
    parent: str | None = None


def default_uri(runs: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or a sqlite file under the runs directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs.resolve()}/mlflow.db"


@dataclass
class _Sent:
    """What MLflow has acknowledged; kept beside the record it speaks of."""

    run_id: str | None = None
    metrics_bytes: int = 0
    images: list[str] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Opening:
    """What a run says of itself when it is opened."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: tuple[str, str, str] | None = None  # name, digest, source
    started: float | None = None  # seconds since 1970, where it is not now


class Record:
    """The local metrics of a run: JSON lines, appended, synced, never a step twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = -1
        if path.is_file():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) != len(data):  # torn by a crash in mid-write
                os.truncate(path, len(whole))
            lines = whole.splitlines()
            self._last = json.loads(lines[-1])["step"] if lines else -1

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step, unless an earlier attempt of the same run has written it."""
        if step <= self._last:
            return
        entry = {"step": step, "time": time.time(), "metrics": dict(metrics)}
        with self._path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._last = step


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


class Uploader:
    """Brings a run's MLflow state up to its local record."""

    def __init__(self, directory: RunDirectory, link: Link, opening: Opening) -> None:
        self._directory = directory
        self._link = link
        self._opening = opening
        self._state = directory.path / "tracking.json"
        self.sent = _Sent()
        if self._state.is_file():
            self.sent = _Sent(**json.loads(self._state.read_text(encoding="utf-8")))
        self._client: MlflowClient | None = None
        self._samples = 0

    def _connect(self) -> tuple["MlflowClient", str]:
        if self._client is None:
            self._client = client(self._link.uri)
        if self.sent.run_id is None:
            self.sent.run_id = open_run(self._client, self._link, self._opening)
            self._keep()
        return self._client, self.sent.run_id

    def _keep(self) -> None:
        write_json(self._state, asdict(self.sent))

    def sync(self) -> None:
        """Send what is new: opening, metrics, pictures. Raises what MLflow raises."""
        mlflow, run_id = self._connect()
        self._send_metrics(mlflow, run_id)
        for path in sorted(self._directory.previews.glob("*-step-*.png")):
            if path.name not in self.sent.images:
                key, _, step = path.stem.partition("-step-")
                with Image.open(path) as image:
                    mlflow.log_image(run_id, image.convert("RGB"), key=key, step=int(step))
                self.sent.images.append(path.name)
                self._keep()

    def _send_metrics(self, mlflow: "MlflowClient", run_id: str) -> None:
        from mlflow.entities import Metric

        if not self._directory.metrics.is_file():
            return
        with self._directory.metrics.open("rb") as file:
            file.seek(self.sent.metrics_bytes)
            data = file.read()
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        batch: list[Metric] = []
        size = 0
        for number, line in enumerate(lines):
            entry = json.loads(line)
            stamp = int(entry["time"] * 1000)
            batch += [
                Metric(name, value, stamp, entry["step"])
                for name, value in entry["metrics"].items()
            ]
            size += len(line)
            if len(batch) > BATCH - 100 or number == len(lines) - 1:
                mlflow.log_batch(run_id, metrics=batch)
                self.sent.metrics_bytes += size
                self._keep()
                batch, size = [], 0

    def sample_system(self) -> None:
        """Send this machine's load, under MLflow's own names for system metrics."""
        from mlflow.entities import Metric

        mlflow, run_id = self._connect()
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._directory.path))
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / 1e6,
        }
        now = int(time.time() * 1000)
        mlflow.log_batch(
            run_id,
            metrics=[
                Metric(f"system/{name}", value, now, self._samples)
                for name, value in values.items()
            ],
        )
        self._samples += 1

    def finish(self, status: Status, artifacts: Mapping[str, Path]) -> None:
        """Send the rest and close the run; `artifacts` are directories or files by name."""
        self.sync()
        mlflow, run_id = self._connect()
        for name, path in artifacts.items():
            if name not in self.sent.artifacts and path.exists():
                if path.is_dir():
                    mlflow.log_artifacts(run_id, str(path), name)
                else:
                    mlflow.log_artifact(run_id, str(path), name)
                self.sent.artifacts.append(name)
                self._keep()
        mlflow.set_terminated(run_id, status)


class Tracker:
    """What the loop writes to: the record at once, MLflow from a thread."""

    def __init__(
        self, directory: RunDirectory, link: Link | None, opening: Opening, *, writes: bool
    ) -> None:
        self._directory = directory
        self._record = Record(directory.metrics) if writes else None
        self._uploader = Uploader(directory, link, opening) if writes and link else None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._upload, name="tracking", daemon=True)
        if self._uploader:
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of `step` (updates done)."""
        if self._record:
            self._record.append(step, metrics)

    def pictures(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """Keep pictures under previews/; MLflow shows them with a step slider."""
        if self._record is None:
            return
        for name, picture in pictures.items():
            path = self._directory.previews / f"{name}-step-{step:08d}.png"
            temporary = path.with_suffix(".tmp")
            picture.save(temporary, format="PNG")
            temporary.rename(path)

    def _upload(self) -> None:
        assert self._uploader is not None
        sampled, waiting = 0.0, 1.0
        while not self._stop.wait(waiting):
            try:
                self._uploader.sync()
                if time.monotonic() - sampled > 10:
                    self._uploader.sample_system()
                    sampled = time.monotonic()
                waiting = 2.0
            except Exception as error:  # noqa: BLE001 - whatever a server does, training goes on
                if waiting < 60:
                    log.warning("MLflow does not take the metrics now (%s)", _short(error))
                waiting = 60.0

    def close(self, status: Status, artifacts: Mapping[str, Path]) -> None:
        """Send the rest, within bounds; what cannot be sent stays in the run directory."""
        if self._uploader is None:
            return
        self._stop.set()
        self._thread.join(timeout=60)
        try:
            self._uploader.finish(status, artifacts)
        except Exception as error:  # noqa: BLE001 - the run itself is complete on disk
            log.warning(
                "MLflow did not take everything (%s); the record is complete in %s",
                _short(error),
                self._directory.path,
            )


def client(uri: str) -> "MlflowClient":
    """An MLflow client with bounded waiting; an sqlite store is created at its first use."""
    for name, value in BOUNDS.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri)


def open_run(mlflow: "MlflowClient", link: Link, opening: Opening) -> str:
    """Create a run and write its parameters, tags and data set; returns its id."""
    from mlflow.entities import Dataset, DatasetInput, Param

    experiment = mlflow.get_experiment_by_name(link.experiment)
    artifacts = None
    if link.uri.startswith("sqlite:///"):
        artifacts = (Path(link.uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
    identifier = (
        experiment.experiment_id
        if experiment
        else mlflow.create_experiment(link.experiment, artifact_location=artifacts)
    )
    tags = {"mlflow.runName": opening.name, **opening.tags}
    if link.parent:
        tags["mlflow.parentRunId"] = link.parent
    start = None if opening.started is None else int(opening.started * 1000)
    run_id: str = mlflow.create_run(identifier, start_time=start, tags=tags).info.run_id
    params = [
        Param(key, str(value)[:VALUE_LIMIT]) for key, value in flatten(opening.params).items()
    ]
    for first in range(0, len(params), 100):
        mlflow.log_batch(run_id, params=params[first : first + 100])
    if opening.dataset:
        name, digest, source = opening.dataset
        dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=source)
        mlflow.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset)])
    return run_id


def _short(error: Exception) -> str:
    """The first line of a message, without the password of a URL in it."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r"://[^/@\s]*@", "://", line)[:200]


def open_parent(root: Path, link: Link, opening: Opening) -> str | None:
    """The parent run of a pipeline's run directory, made at the first call.

    None when the server does not answer: stages then run untracked under a parent and keep their
    records, and the pipeline goes on.
    """
    state = root / "tracking.json"
    if state.is_file():
        parent: str = json.loads(state.read_text(encoding="utf-8"))["run_id"]
        return parent
    try:
        parent = open_run(client(link.uri), link, opening)
    except Exception as error:  # noqa: BLE001 - whatever a server does, the pipeline goes on
        log.warning("MLflow does not answer (%s); the run goes on without it", _short(error))
        return None
    write_json(state, asdict(_Sent(run_id=parent)))
    return parent


def close_parent(root: Path, link: Link, *, failed: bool) -> None:
    """End a pipeline's parent run, with its result page."""
    if link.parent is None:
        return
    try:
        mlflow = client(link.uri)
        if (root / "index.html").is_file():
            mlflow.log_artifact(link.parent, str(root / "index.html"))
        mlflow.set_terminated(link.parent, "FAILED" if failed else "FINISHED")
    except Exception as error:  # noqa: BLE001 - the run itself is complete on disk
        log.warning("MLflow does not answer (%s)", _short(error))


def track_once(
    directory: RunDirectory, link: Link | None, opening: Opening, artifacts: Mapping[str, Path]
) -> None:
    """Track a finished stage that has no training loop: its record, and what it left."""
    if link is None:
        return
    try:
        Uploader(directory, link, opening).finish("FINISHED", artifacts)
    except Exception as error:  # noqa: BLE001 - the stage itself is complete on disk
        log.warning("MLflow does not answer (%s)", _short(error))
