"""Run records on disk, from which MLflow is fed; nothing here needs MLflow.

    opening.json         run record: parameters, tags, starts, status at the end
    metrics.jsonl        a line per logged step
    system/NODE.jsonl    a line per sample of a node's system metrics
    tracking.json        upload state: the id of the MLflow run, what it has acknowledged

A pipeline's run directory has the first and the last, for the parent run of its stages' runs.
`opening.json` is written by the run itself and `tracking.json` by the uploader, so a later process
can upload what an earlier one could not.
"""

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from mezzotint.common.errors import UserError
from mezzotint.common.files import append_json, finite, read_lines, write_json
from mezzotint.common.storage_errors import redact
from trainer.recipe import flatten

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
RECORD_FILE, STATE_FILE = "opening.json", "tracking.json"
NON_FINITE = "non_finite_updates"
"""Logged steps with a metric that is infinite or NaN, since the start of the run."""
T = TypeVar("T")


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is tracked. The URI may hold a password: it is never written down."""

    uri: str = field(repr=False)
    experiment: str
    root: Path | None = None
    """Run directory of the pipeline whose run is the parent of this one."""
    experiment_id: str | None = None
    """From MLFLOW_EXPERIMENT_ID; beside a name, both must mean one experiment."""
    experiment_named: bool = False
    """Whether a variable names the experiment, so that it precedes the recorded one."""
    run_id: str | None = None
    """From MLFLOW_RUN_ID: an existing MLflow run to continue, of a run without a parent."""
    run_name: str | None = None
    """From MLFLOW_RUN_NAME, for a run without a parent."""


@dataclass(frozen=True)
class RunInfo:
    """A run as it starts: name, parameters, tags, data set (name, digest, source)."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: tuple[str, str, str] | None = None


@dataclass
class RunRecord:
    """`opening.json`. Times are seconds since 1970."""

    id: str
    """A random id, so that a lost response creates no second MLflow run."""
    name: str
    experiment: str | None
    """None without a tracking server so far: then the first upload decides."""
    started: float
    experiment_id: str | None = None
    """Precedes the name, if there is one."""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: list[str] | None = None
    starts: list[dict[str, str]] = field(default_factory=list)
    status: Status = "RUNNING"
    ended: float | None = None
    error: str | None = None
    """The first line of the error that ended it."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """Uploaded at the end: paths, relative to the run directory where inside."""
    stages: dict[str, Status] = field(default_factory=dict)
    """Of a pipeline: stages that ended without finishing."""


@dataclass
class UploadState:
    """`tracking.json`: what MLflow has acknowledged."""

    run_id: str | None = None
    store: str | None = None
    """The tracking store of that run, without credentials."""
    params: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: bool = False
    metrics_bytes: int = 0
    images: list[str] = field(default_factory=list)
    artifacts: dict[str, int] = field(default_factory=dict)
    """Uploaded files, and when each was last changed (ns since 1970)."""
    status: Status = "RUNNING"
    ended: float | None = None


@dataclass
class UploadSummary:
    """What one `sync` sent."""

    run_id: str
    created: bool = False
    steps: int = 0
    images: int = 0
    artifacts: int = 0
    samples: int = 0


def read_run_record(directory: Path) -> RunRecord | None:
    """The run record; None where there is none yet."""
    return _read(directory / RECORD_FILE, RunRecord)


def write_run_record(directory: Path, record: RunRecord) -> None:
    """Replace the run record."""
    write_json(directory / RECORD_FILE, asdict(record))


def read_upload_state(directory: Path) -> UploadState:
    """The upload state; empty where nothing is uploaded."""
    return _read(directory / STATE_FILE, UploadState) or UploadState()


def write_upload_state(directory: Path, state: UploadState) -> None:
    """Replace the upload state."""
    write_json(directory / STATE_FILE, asdict(state))


def _read(path: Path, kind: type[T]) -> T | None:
    if not path.is_file():
        return None
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:  # no JSON, or other keys
        raise UserError(
            f"{path}: cannot be read; remove {RECORD_FILE} and {STATE_FILE} there, and "
            "the run is tracked as a new one"
        ) from error


def start_record(
    directory: Path, tracking: TrackingConfig | None, info: RunInfo, processes: int = 1
) -> RunRecord:
    """Record a start of a run in the experiment of `tracking`."""
    if tracking is None:
        return record_start(directory, None, info, processes)
    identifier = None if tracking.experiment_named else tracking.experiment_id
    return record_start(directory, tracking.experiment, info, processes, experiment_id=identifier)


def record_start(
    directory: Path,
    experiment: str | None,
    info: RunInfo,
    processes: int = 1,
    *,
    experiment_id: str | None = None,
) -> RunRecord:
    """Record a start of a run, its first or one after an interruption.

    Parameters are fixed once MLflow has acknowledged the run; what differs from start to start
    (nodes, job, processes) is in the tags.
    """
    record = read_run_record(directory)
    if record is None:
        record = RunRecord(secrets.token_hex(16), info.name, experiment, time.time())
    if read_upload_state(directory).run_id is None:
        record.name, record.experiment = info.name, experiment
        record.experiment_id = experiment_id
        record.params = flat_params(info.params)
        record.tags = {key: redact(value) for key, value in info.tags.items()}
        if info.dataset:
            record.dataset = [redact(each) for each in info.dataset]
    record.starts.append({"processes": str(processes), "nodes": node_name(), **slurm_job_info()})
    record.tags |= {
        "mezzotint.directory": str(directory.resolve()),
        "mezzotint.restarts": str(len(record.starts) - 1),
        **{f"mezzotint.{key}": value for key, value in record.starts[-1].items()},
    }
    if jobs := slurm_jobs(record):
        record.tags["mezzotint.jobs"] = ", ".join(jobs)
    record.status, record.ended, record.error, record.artifacts = "RUNNING", None, None, {}
    write_run_record(directory, record)
    return record


def record_end(
    directory: Path,
    status: Status,
    artifacts: Mapping[str, Path] | None = None,
    params_at_end: Mapping[str, str] | None = None,
    error: BaseException | None = None,
) -> None:
    """Record how a run ended, its artifacts, and parameters that were not known at the start."""
    record = read_run_record(directory)
    if record is None:
        return
    record.status, record.ended = status, time.time()
    if error is not None:
        record.error = redact(str(error) or type(error).__name__).splitlines()[0]
        record.tags["mezzotint.error"] = record.error
    for name, path in (artifacts or {}).items():
        inside = path.resolve().is_relative_to(directory.resolve())
        record.artifacts[name] = os.path.relpath(path, directory) if inside else str(path.resolve())
    record.params = {**flat_params(params_at_end or {}), **record.params}
    write_run_record(directory, record)


def record_tags(directory: Path, tags: Mapping[str, str]) -> None:
    """Record tags of a run that became known while it runs."""
    record = read_run_record(directory)
    if record is None or record.tags.items() >= tags.items():
        return
    record.tags |= tags
    write_run_record(directory, record)


def flat_params(tree: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as MLflow's flat parameters, without credentials."""
    return {key: redact(str(value)) for key, value in flatten(tree).items()}


def slurm_jobs(record: RunRecord) -> list[str]:
    """The ids of the SLURM jobs of a run, in order."""
    return list(dict.fromkeys(start["job"] for start in record.starts if "job" in start))


def slurm_job_info() -> dict[str, str]:
    """Id, name, restarts and nodes of this process's SLURM job; empty outside of one."""
    names = {
        "job": "SLURM_JOB_ID",
        "job_name": "SLURM_JOB_NAME",
        "requeues": "SLURM_RESTART_COUNT",
        "nodes": "SLURM_JOB_NODELIST",
    }
    found = {key: os.environ.get(name) for key, name in names.items()}
    return {key: value for key, value in found.items() if value}


def node_name() -> str:
    """The node's name from SLURM, else the host name, fit for a file name."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name).lstrip(".") or "node"


class MetricsLog:
    """A metrics file: JSON lines, appended and synced, each step once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last, self._non_finite = -1, 0
        if path.is_file():
            lines = read_lines(path)
            os.truncate(path, sum(map(len, lines)))  # drops a line cut off by a crash
            if lines:
                last = json.loads(lines[-1])
                self._last = last["step"]
                self._non_finite = int(last["metrics"].get(NON_FINITE, 0))

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step, unless an earlier attempt of the same run has written it.

        JSON has no infinities and no NaN: they are written as texts under `non_finite`, and the
        metric `non_finite_updates` counts the lines that have one.
        """
        if step <= self._last:
            return
        kept = finite(metrics)
        others = {name: str(value) for name, value in metrics.items() if name not in kept}
        self._non_finite += bool(others)
        if self._non_finite:
            kept[NON_FINITE] = float(self._non_finite)
        line = {"step": step, "time": time.time(), "metrics": kept}
        append_json(self._path, line | ({"non_finite": others} if others else {}))
        self._last = step


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file."""
    return [json.loads(line) for line in read_lines(path)]


def artifact_files(path: Path, folder: str) -> Iterator[tuple[Path, str]]:
    """The files of an artifact and the folder of each, without tracking's own files."""
    if path.is_file():
        yield path, folder
    elif path.is_dir():
        own = {RECORD_FILE, STATE_FILE, "tracking.lock", "lock", "progress.json", "tracking"}
        for each in sorted(path.iterdir()):
            if each.name not in own and each.name != "system" and not each.name.startswith("."):
                yield from artifact_files(
                    each, f"{folder}/{each.name}" if each.is_dir() else folder
                )
