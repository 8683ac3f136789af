"""What a run writes down for its tracker, whether or not one listens. Nothing here needs MLflow.

    opening.json         what the run says of itself: parameters, tags, its starts, how it ended
    metrics.jsonl        a line per logged step
    system/NODE.jsonl    a line per sample of a node's load
    tracking.json        what MLflow has acknowledged: the id of its run, the places reached

A pipeline's run directory has the first and the last, for the run that its stages' runs lie under.
`opening.json` is written by the run itself and `tracking.json` by whoever sends, so a later process
can send what an earlier one could not.
"""

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from mezzotint.common.errors import UserError
from mezzotint.common.files import append_json, read_lines, write_json
from mezzotint.common.storage_errors import redact
from trainer.recipe import flatten

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
OPENING, SENT = "opening.json", "tracking.json"
VALUE_LIMIT = 500


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is tracked. The URI may hold a password: it is never written down."""

    uri: str = field(repr=False)
    experiment: str
    root: Path | None = None
    """The run directory of the pipeline whose run this one lies under."""


@dataclass(frozen=True)
class RunInfo:
    """What a run says of itself when it starts."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    dataset: tuple[str, str, str] | None = None  # name, digest, source


@dataclass
class RunRecord:
    """`opening.json`. Times are seconds since 1970."""

    id: str
    """The run's own name for itself: no second run is made when an answer is lost."""
    name: str
    experiment: str | None
    """None where no server was named yet: the one that it is sent to first decides."""
    started: float
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: list[str] | None = None
    starts: list[dict[str, str]] = field(default_factory=list)
    status: Status = "RUNNING"
    ended: float | None = None
    artifacts: dict[str, str] = field(default_factory=dict)
    """What is kept in MLflow at the end: paths, relative to the run directory where inside."""
    stages: dict[str, Status] = field(default_factory=dict)
    """Of a pipeline: stages that ended without finishing."""


@dataclass
class UploadState:
    """`tracking.json`: what MLflow has acknowledged."""

    run_id: str | None = None
    store: str | None = None
    """Where that run is; without user and password."""
    params: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    dataset: bool = False
    metrics_bytes: int = 0
    images: list[str] = field(default_factory=list)
    artifacts: dict[str, int] = field(default_factory=dict)
    """Files kept in MLflow, and when each was last changed (ns since 1970)."""
    status: Status = "RUNNING"
    ended: float | None = None


def read_account(directory: Path) -> RunRecord | None:
    """What a run says of itself; None where it has said nothing."""
    tree = _read(directory / OPENING)
    return None if tree is None else RunRecord(**tree)


def write_account(directory: Path, account: RunRecord) -> None:
    """Keep what a run says of itself."""
    write_json(directory / OPENING, asdict(account))


def read_sent(directory: Path) -> UploadState:
    """What MLflow has acknowledged of a run."""
    return UploadState(**(_read(directory / SENT) or {}))


def write_sent(directory: Path, sent: UploadState) -> None:
    """Keep what MLflow has acknowledged."""
    write_json(directory / SENT, asdict(sent))


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        known = RunRecord if path.name == OPENING else UploadState
        if not set(tree) <= set(known.__dataclass_fields__):
            raise ValueError("unknown keys")
    except ValueError as error:
        raise UserError(
            f"{path}: cannot be read; remove {OPENING} and {SENT} there, and the run is tracked "
            "as a new one"
        ) from error
    return tree


def begin(
    directory: Path, experiment: str | None, opening: RunInfo, processes: int = 1
) -> RunRecord:
    """Note the start of a run: the first one, or one more after an interruption.

    Parameters are those of the first start that MLflow has heard of; what changes from start to
    start (nodes, job, processes) is in the tags.
    """
    account = read_account(directory)
    if account is None:
        account = RunRecord(secrets.token_hex(16), opening.name, experiment, time.time())
    if read_sent(directory).run_id is None:
        account.name, account.experiment = opening.name, experiment
        account.params = plain(opening.params)
        account.tags = {key: redact(value) for key, value in opening.tags.items()}
        if opening.dataset:
            account.dataset = [redact(each) for each in opening.dataset]
    account.starts.append({"processes": str(processes), "nodes": node(), **job_facts()})
    account.tags |= {
        "mezzotint.directory": str(directory.resolve()),
        "mezzotint.restarts": str(len(account.starts) - 1),
        **{f"mezzotint.{key}": value for key, value in account.starts[-1].items()},
    }
    if jobs := jobs_of(account):
        account.tags["mezzotint.jobs"] = ", ".join(jobs)
    account.status, account.ended, account.artifacts = "RUNNING", None, {}
    write_account(directory, account)
    return account


def end(
    directory: Path,
    status: Status,
    artifacts: Mapping[str, Path] | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Note how a run ended, what of it is to be kept, and what became known on the way."""
    account = read_account(directory)
    if account is None:
        return
    account.status, account.ended = status, time.time()
    for name, path in (artifacts or {}).items():
        inside = path.resolve().is_relative_to(directory.resolve())
        where = os.path.relpath(path, directory) if inside else str(path.resolve())
        account.artifacts[name] = where
    account.params = {**plain(facts or {}), **account.params}
    write_account(directory, account)


def plain(tree: Mapping[str, Any]) -> dict[str, str]:
    """A tree as MLflow's flat parameters, without the passwords of URLs."""
    return {key: redact(str(value))[:VALUE_LIMIT] for key, value in flatten(tree).items()}


def jobs_of(account: RunRecord) -> list[str]:
    """The SLURM jobs a run was in, in order."""
    return list(dict.fromkeys(start["job"] for start in account.starts if "job" in start))


def job_facts() -> dict[str, str]:
    """What SLURM says of the job this process is in; empty outside of one."""
    names = {
        "job": "SLURM_JOB_ID",
        "job_name": "SLURM_JOB_NAME",
        "requeues": "SLURM_RESTART_COUNT",
        "nodes": "SLURM_JOB_NODELIST",
    }
    found = {key: os.environ.get(name) for key, name in names.items()}
    return {key: value for key, value in found.items() if value}


def node() -> str:
    """This machine's name, as SLURM or else the system knows it; fit for a file name."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name).lstrip(".") or "node"


class Record:
    """The local metrics of a run: JSON lines, appended, synced, never a step twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = -1
        if path.is_file():
            lines = read_lines(path)
            os.truncate(path, sum(map(len, lines)))  # drops a line cut off by a crash
            self._last = json.loads(lines[-1])["step"] if lines else -1

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step, unless an earlier attempt of the same run has written it."""
        if step <= self._last:
            return
        entry = {"step": step, "time": time.time(), "metrics": dict(metrics)}
        append_json(self._path, entry)
        self._last = step


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file."""
    return [json.loads(line) for line in read_lines(path)]
