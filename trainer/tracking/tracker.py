"""Tracking of a run: metrics and images to disk at once, to MLflow from a thread."""

import io
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from PIL import Image

from mezzotint.common.errors import UserError
from mezzotint.common.files import write_bytes
from trainer.run import RunDirectory
from trainer.tracking.address import TrackingError
from trainer.tracking.mlflow_client import NodeMetricsUploader, Uploader, configure_mlflow
from trainer.tracking.run_log import (
    MetricsLog,
    RunInfo,
    Status,
    TrackingConfig,
    node_name,
    read_run_record,
    record_end,
    record_tags,
    start_record,
)
from trainer.tracking.system_metrics import SystemMetrics

log = logging.getLogger(__name__)
SAMPLE_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0


class Tracker:
    """Tracks one run, in each of its processes: one `writes`, one per node `samples` the system.

    Nothing waits for a server except `close`, which waits for seconds only.
    """

    def __init__(
        self,
        directory: RunDirectory,
        tracking: TrackingConfig | None,
        info: RunInfo,
        *,
        writes: bool,
        samples: bool,
        processes: int = 1,
    ) -> None:
        self._directory = directory
        self._metrics_log = self._uploader = self._node_metrics = None
        if writes:
            start_record(directory.path, tracking, info, processes)
            self._metrics_log = MetricsLog(directory.metrics)
            self._uploader = Uploader(directory, tracking) if tracking else None
        if samples:
            self._node_metrics = NodeMetrics(directory.path, tracking)
        if tracking and (self._uploader or self._node_metrics):
            configure_mlflow()
        self._reachable, self._last_error = True, ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_and_send, name="tracking", daemon=True)
        if self._uploader or self._node_metrics:
            self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of `step` (updates done)."""
        if self._metrics_log:
            self._metrics_log.append(step, metrics)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Record tags of the run."""
        if self._metrics_log is not None and tags:
            record_tags(self._directory.path, tags)

    def log_images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        """Save images under previews/; MLflow shows them with a step slider."""
        if self._metrics_log is None:
            return
        for name, image in images.items():
            content = io.BytesIO()
            image.save(content, format="PNG")
            path = self._directory.previews / f"{name}-step-{step:08d}.png"
            write_bytes(path, content.getvalue())

    def _sample_and_send(self) -> None:
        """Sample and upload until stopped, with longer pauses after failures."""
        pause, due = SAMPLE_SECONDS, time.monotonic() + SAMPLE_SECONDS
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()
            if time.monotonic() < due:
                continue
            self._reachable = self._send(wait=1.0)
            pause = 2 * SAMPLE_SECONDS if self._reachable else min(2 * pause, MAX_RETRY_SECONDS)
            due = time.monotonic() + pause

    def _sample(self) -> None:
        try:
            if self._node_metrics:
                self._node_metrics.sample()
        except (OSError, UserError) as error:
            log.debug("no system metrics of this node: %s", error)

    def _send(self, wait: float) -> bool:
        """Upload what is new; a failure is logged once, and so is its end."""
        try:
            if self._uploader:
                self._uploader.sync(wait)
            if self._node_metrics:
                self._node_metrics.send(wait)
        except TrackingError as error:
            if str(error) != self._last_error:
                log.warning("not tracked for now: %s", error)
            self._last_error = str(error)
            return False
        if self._last_error:
            log.info("tracking works again")
            self._last_error = ""
        return True

    def close(
        self,
        status: Status,
        artifacts: Mapping[str, Path] | None = None,
        params_at_end: Mapping[str, str] | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Record the end and upload the rest for a bounded time; what remains is kept on disk."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=60)
            self._sample()
        if self._metrics_log is not None:
            record_end(self._directory.path, status, artifacts, params_at_end, error)
        if self._uploader is None:
            if self._node_metrics and self._reachable:
                self._node_metrics.flush()
            return
        tries = 2 if self._reachable else 1
        for number in range(tries):
            try:
                self._uploader.sync()
                if self._node_metrics:
                    self._node_metrics.flush()
                return
            except TrackingError as error:
                if number < tries - 1:
                    time.sleep(2 * SAMPLE_SECONDS)
                    continue
                log_deferred_upload(self._directory.path, error)


class NodeMetrics:
    """Samples system metrics of this node into `system/NODE.jsonl`, and uploads them."""

    def __init__(self, directory: Path, tracking: TrackingConfig | None) -> None:
        self._directory, self._host = directory, node_name()
        (directory / "system").mkdir(parents=True, exist_ok=True)
        self._metrics_log = MetricsLog(directory / "system" / f"{self._host}.jsonl")
        self._uploader = NodeMetricsUploader(directory, tracking, self._host) if tracking else None
        self._system = SystemMetrics(directory)
        self._due = 0.0

    def sample(self) -> None:
        """Take a sample when one is due; its step is seconds since the run's first start."""
        record = read_run_record(self._directory) if time.monotonic() >= self._due else None
        if record is None:
            return
        self._metrics_log.append(int(time.time() - record.started), self._system.read())
        self._due = time.monotonic() + sampling_interval()

    def send(self, wait: float) -> None:
        if self._uploader:
            self._uploader.sync(wait)

    def flush(self) -> None:
        """Upload the last samples; a failure leaves them for later."""
        try:
            self.send(wait=1.0)
        except TrackingError as error:
            log.info("the last system metrics of this node are not uploaded: %s", error)


def finalize(directory: RunDirectory, tracking: TrackingConfig | None) -> None:
    """Complete the record of a finished run whose process was killed, and upload the rest."""
    record = read_run_record(directory.path)
    if record is None:
        return
    if record.status != "FINISHED":
        record_end(directory.path, "FINISHED", {"model": directory.model})
    if tracking:
        upload(directory, tracking)


def upload(directory: RunDirectory, tracking: TrackingConfig) -> bool:
    """Upload what is new of a run; returns whether that worked, else logs what to do later."""
    try:
        Uploader(directory, tracking).sync()
    except TrackingError as error:
        log_deferred_upload(directory.path, error)
        return False
    return True


def log_deferred_upload(directory: Path, error: TrackingError) -> None:
    """Log why a server refused, and that nothing is lost."""
    log.warning(
        "%s. The record is complete in %s; `mezzotint tracking sync %s` uploads it later",
        error,
        directory,
        quote(str(directory)),
    )


def sampling_interval() -> float:
    """Seconds between samples of system metrics, from MLflow's own variable."""
    return float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "10"))
