"""What the loop writes to: the record on disk at once, MLflow from a thread."""

import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from mezzotint.common.errors import UserError
from trainer.run import RunDirectory
from trainer.tracking.errors import TrackingError
from trainer.tracking.mlflow_client import LoadUploader, Uploader, prepare
from trainer.tracking.run_log import (
    Record,
    RunInfo,
    Status,
    TrackingConfig,
    begin,
    end,
    node,
    read_account,
)
from trainer.tracking.system_metrics import SystemMetrics

log = logging.getLogger(__name__)
TICK, LONGEST_PAUSE = 1.0, 60.0


class Tracker:
    """Tracks one run, from each of its processes: one writes, one on every node samples its load.

    Nothing here waits for a server before `close`, and that waits for seconds only.
    """

    def __init__(
        self,
        directory: RunDirectory,
        link: TrackingConfig | None,
        opening: RunInfo,
        *,
        writes: bool,
        samples: bool,
        processes: int = 1,
    ) -> None:
        self._directory = directory
        self._record = self._uploader = self._load = None
        if writes:
            begin(directory.path, link.experiment if link else None, opening, processes)
            self._record = Record(directory.metrics)
            self._uploader = Uploader(directory, link) if link else None
        if samples:
            self._load = NodeMetrics(directory.path, link)
        if link and (self._uploader or self._load):
            prepare()
        self._well, self._said = True, ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tracking", daemon=True)
        if self._uploader or self._load:
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

    def _watch(self) -> None:
        """Sample and send until told to stop; after a failure the pauses grow."""
        pause, due = TICK, time.monotonic() + TICK
        while not self._stop.wait(TICK):
            self._sample()
            if time.monotonic() < due:
                continue
            self._well = self._send(wait=1.0)
            pause = 2 * TICK if self._well else min(2 * pause, LONGEST_PAUSE)
            due = time.monotonic() + pause

    def _sample(self) -> None:
        try:
            if self._load:
                self._load.sample()
        except (OSError, UserError) as error:
            log.debug("no sample of this node's load: %s", error)

    def _send(self, wait: float) -> bool:
        """Send what is new; a refusal is said once, and so is its end."""
        try:
            if self._uploader:
                self._uploader.sync(wait)
            if self._load:
                self._load.send(wait)
        except TrackingError as refused:
            if str(refused) != self._said:
                log.warning("not tracked for now: %s", refused)
            self._said = str(refused)
            return False
        if self._said:
            log.info("MLflow takes the record again")
            self._said = ""
        return True

    def close(
        self,
        status: Status,
        artifacts: Mapping[str, Path] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Note the end and send the rest, within bounds; what is not sent now can be sent later."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=60)
            self._sample()
        if self._record is not None:
            end(self._directory.path, status, artifacts, facts)
        if self._uploader is None:
            if self._load and self._well:
                self._load.flush()
            return
        tries = 2 if self._well else 1
        for number in range(tries):
            try:
                self._uploader.sync()
                if self._load:
                    self._load.flush()
                return
            except TrackingError as refused:
                if number < tries - 1:
                    time.sleep(2 * TICK)
                    continue
                regret(self._directory.path, refused)


class NodeMetrics:
    """Samples this node's load into `system/NODE.jsonl`, and sends it."""

    def __init__(self, directory: Path, link: TrackingConfig | None) -> None:
        self._directory, self._host = directory, node()
        (directory / "system").mkdir(parents=True, exist_ok=True)
        self._record = Record(directory / "system" / f"{self._host}.jsonl")
        self._uploader = LoadUploader(directory, link, self._host) if link else None
        self._load = SystemMetrics(directory)
        self._due = 0.0

    def sample(self) -> None:
        """Note the load, when it is time to; its step is seconds since the run's first start."""
        account = read_account(self._directory) if time.monotonic() >= self._due else None
        if account is None:
            return
        self._record.append(int(time.time() - account.started), self._load.read())
        self._due = time.monotonic() + interval()

    def send(self, wait: float) -> None:
        """Send the samples that are new."""
        if self._uploader:
            self._uploader.sync(wait)

    def flush(self) -> None:
        """Send the last samples, or leave them for later."""
        try:
            self.send(wait=1.0)
        except TrackingError as refused:
            log.info("the last samples of this node's load are not sent: %s", refused)


def catch_up(directory: RunDirectory, link: TrackingConfig | None) -> None:
    """Note the end of a finished run whose process did not live to, and send what is missing."""
    account = read_account(directory.path)
    if account is None:
        return
    if account.status != "FINISHED":
        end(directory.path, "FINISHED", {"model": directory.model})
    if link:
        push(directory, link)


def push(directory: RunDirectory, link: TrackingConfig) -> bool:
    """Send what is new of a run; where that cannot be, say why and how it is done later."""
    try:
        Uploader(directory, link).sync()
    except TrackingError as refused:
        regret(directory.path, refused)
        return False
    return True


def regret(directory: Path, refused: TrackingError) -> None:
    """Say what a server did not take, and that nothing is lost."""
    log.warning(
        "%s. The record is complete in %s; `mezzotint tracking sync %s` sends it later",
        refused,
        directory,
        directory,
    )


def interval() -> float:
    """Seconds between samples of a node's load; MLflow's own variable sets them."""
    return float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "10"))
