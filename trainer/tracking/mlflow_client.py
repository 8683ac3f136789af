"""MLflow, and the only file that imports it.

A run first writes its record and metrics to disk (trainer/tracking/run_log.py). An uploader sends
what MLflow has not acknowledged yet, each item once, from any process at any time.
"""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from mezzotint.common.files import finite, read_lines, write_json
from mezzotint.common.locks import file_lock
from mezzotint.common.storage_errors import redact
from trainer.run import RunDirectory
from trainer.tracking.address import TrackingError, check_uri, sqlite_path
from trainer.tracking.client_settings import CLIENT_ENVIRONMENT, request_timeout
from trainer.tracking.errors import explain_errors, store_name, unknown_run
from trainer.tracking.limits import NAME_LIMIT, batches, fit_name, fit_value, fit_values
from trainer.tracking.run_log import (
    RunRecord,
    TrackingConfig,
    UploadState,
    UploadSummary,
    artifact_files,
    read_run_record,
    read_upload_state,
    write_upload_state,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric

log = logging.getLogger(__name__)
ARTIFACT_TIMEOUT = 60.0
BATCH = 1000  # metrics that MLflow takes in a request
LOCK_SECONDS = 20.0


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
        file = sqlite_path(self._tracking.uri)
        if state.run_id is not None and file is not None and not file.exists():
            raise TrackingError(unknown_run(self._tracking.uri, state.store))  # nor is it created
        mlflow, created = self._client, state.run_id is None
        parent = self._parent_id
        if state.run_id is None:
            state.run_id = open_run(mlflow, self._tracking, record, parent)
            state.store = redact(self._tracking.uri)
            if state.run_id == self._tracking.run_id:  # what it says already stays
                state.params = list(mlflow.get_run(state.run_id).data.params)
            self._save_state(state)
        elif state.store != redact(self._tracking.uri):
            mlflow.get_run(state.run_id)  # refused by a store that does not know it
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
        from mlflow.utils import validation

        params = {key: value for key, value in record.params.items() if key not in state.params}
        self._keep_long(run_id, "parameters.json", params, validation.MAX_PARAM_VAL_LENGTH)
        for chunk in batches(params, validation.MAX_PARAMS_TAGS_PER_BATCH):
            fitted = fit_values(chunk, validation.MAX_PARAM_VAL_LENGTH)
            self._client.log_batch(
                run_id, params=[Param(*each) for each in fitted], synchronous=True
            )
            state.params += list(chunk)
            self._save_state(state)
        tags = {key: value for key, value in record.tags.items() if state.tags.get(key) != value}
        self._keep_long(run_id, "tags.json", tags, validation.MAX_TAG_VAL_LENGTH)
        for chunk in batches(tags, validation.MAX_PARAMS_TAGS_PER_BATCH):
            fitted = fit_values(chunk, validation.MAX_TAG_VAL_LENGTH)
            self._client.log_batch(
                run_id, tags=[RunTag(*each) for each in fitted], synchronous=True
            )
            state.tags |= chunk
            self._save_state(state)
        if record.dataset and not state.dataset:
            name, digest, source = record.dataset
            dataset = Dataset(
                name=fit_value(name, validation.MAX_DATASET_NAME_SIZE),
                digest=digest[: validation.MAX_DATASET_DIGEST_SIZE],
                source_type="local",
                source=source,
            )
            self._client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset)])
            state.dataset = True
            self._save_state(state)

    def _keep_long(self, run_id: str, file: str, values: dict[str, str], limit: int) -> None:
        """Keep values whole in an artifact, if the store takes only a part of one of them."""
        if any(
            value != fitted
            for value, (_, fitted) in zip(values.values(), fit_values(values, limit), strict=True)
        ):
            text = json.dumps(values, indent=1, ensure_ascii=False)
            self._client.log_text(run_id, text, file)

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
            Metric(fit_name(f"{prefix}{name}", NAME_LIMIT), value, milliseconds, entry["step"])
            for name, value in finite(entry["metrics"]).items()
        ]
        size, count = size + len(line), count + 1
        if len(chunk) > BATCH // 2 or number == len(lines) - 1:
            yield chunk, size, count
            chunk, size, count = [], 0, 0


def log_metrics(mlflow: "MlflowClient", run_id: str, metrics: list["Metric"]) -> None:
    """Send metrics in as many requests as they need."""
    for first in range(0, len(metrics), BATCH):
        mlflow.log_batch(run_id, metrics=metrics[first : first + BATCH], synchronous=True)


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
    if tracking.run_id is not None and parent is None:
        return continue_run(mlflow, tracking.run_id, record)
    experiment = experiment_id(mlflow, tracking, record)
    created = mlflow.search_runs(
        [experiment], f"tags.`mezzotint.id` = '{record.id}'", max_results=1
    )
    if created:
        return str(created[0].info.run_id)
    name = record.name if parent else tracking.run_name or record.name
    tags = {"mlflow.runName": name, "mezzotint.id": record.id}
    if parent:
        tags["mlflow.parentRunId"] = parent
    start = int(record.started * 1000)
    return str(mlflow.create_run(experiment, start_time=start, tags=tags).info.run_id)


def continue_run(mlflow: "MlflowClient", run_id: str, record: RunRecord) -> str:
    """The MLflow run that MLFLOW_RUN_ID names, which must not be that of another record."""
    tags = mlflow.get_run(run_id).data.tags
    if tags.get("mezzotint.id", record.id) != record.id:
        raise TrackingError(
            f"MLFLOW_RUN_ID={run_id}: is the MLflow run of "
            f"{tags.get('mezzotint.directory', 'another directory')}; unset the variable"
        )
    mlflow.set_tag(run_id, "mezzotint.id", record.id)
    return run_id


def experiment_id(mlflow: "MlflowClient", tracking: TrackingConfig, record: RunRecord) -> str:
    """The id of a run's experiment, which is created at its first run.

    Raises:
        TrackingError: it is deleted, there is none with this id, or name and id differ.
    """
    named = tracking.experiment_named
    identifier = tracking.experiment_id or (None if named else record.experiment_id)
    if identifier is not None and not named:
        return existing_experiment(mlflow, identifier, tracking.uri)
    name = tracking.experiment if named else record.experiment or tracking.experiment
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        found = create_experiment(mlflow, tracking.uri, name)
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"the experiment {name!r} is deleted in {store_name(tracking.uri)}: `mlflow "
            f"experiments restore --experiment-id {found.experiment_id}` restores it, or set "
            "MLFLOW_EXPERIMENT_NAME to another name"
        )
    if identifier not in (None, str(found.experiment_id)):
        raise TrackingError(
            f"MLFLOW_EXPERIMENT_ID={identifier}: is not the experiment {name!r}, which is "
            f"{found.experiment_id}; unset it, or MLFLOW_EXPERIMENT_NAME"
        )
    return str(found.experiment_id)


def existing_experiment(mlflow: "MlflowClient", identifier: str, uri: str) -> str:
    """The id of an experiment that MLFLOW_EXPERIMENT_ID names."""
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow.get_experiment(identifier)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        found = None
    if found is None or found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"MLFLOW_EXPERIMENT_ID={identifier}: {store_name(uri)} has no such experiment, or it "
            "is deleted; set it to an existing id, or set MLFLOW_EXPERIMENT_NAME instead"
        )
    return str(found.experiment_id)


def create_experiment(mlflow: "MlflowClient", uri: str, name: str) -> "Experiment":
    """Create an experiment, unless another run does so at the same time."""
    from mlflow.exceptions import MlflowException

    file = sqlite_path(uri)
    artifacts = None if file is None else (file.parent / "mlartifacts").as_uri()
    try:
        return mlflow.get_experiment(mlflow.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            raise
        return found
