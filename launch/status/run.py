"""How runs stand: what SLURM says of their jobs, put together with what their directories say.

The facts are a pure function of a run directory, the states of its jobs and the time; `look` asks
SLURM and calls it.
"""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.slurm import client
from launch.slurm.client import JobState
from launch.slurm.records import Job, Submission
from launch.status.run_files import (
    StagePlan,
    is_finished,
    planned_stages,
    read_json,
    read_stage_files,
    read_submission_safely,
    started_since,
)
from launch.status.stage import LIVE, StageEvidence, StageStatus, State, is_same_job, stage_status
from mezzotint.common.errors import UserError
from mezzotint.common.locks import LockOwner, lock_owner
from mezzotint.common.storage_errors import redact

STATE_ORDER: tuple[State, ...] = (
    *LIVE,
    "failed",
    "cancelled",
    "unknown",
    "stopped",
    "not submitted",
)
"""What a run as a whole is: the first of these that one of its stages is."""


@dataclass(frozen=True)
class TrackingInfo:
    """Where MLflow has a run; the address is shown without user name and password."""

    uri: str
    run_id: str | None


@dataclass(frozen=True)
class RunStatus:
    """How a run stands."""

    name: str
    root: Path
    kind: Literal["pipeline", "recipe"]
    state: State
    done: int
    stages: tuple[StageStatus, ...]
    cluster: str | None
    tracking: TrackingInfo | None
    page: Path | None
    holder: LockOwner | None
    """The process of this machine, or of one that shares the directory, that works on it."""
    notes: tuple[str, ...]
    """What could not be asked or read."""

    @property
    def ended(self) -> bool:
        """Whether nothing of it waits or runs any more, as far as can be known."""
        unsure = bool(self.notes) and self.state == "unknown"
        return self.state not in LIVE and not unsure


def query(roots: Sequence[Path]) -> list[RunStatus]:
    """How these run directories stand now; SLURM is asked once, and only where it has jobs."""
    ids = [job.id for root in roots for job in unfinished_jobs(root)]
    jobs: Mapping[int, JobState] | None = {}
    note = None
    try:
        jobs = client.job_states(ids)
    except UserError as error:
        jobs, note = None, f"SLURM cannot be asked: {error}"
    now = time.time()
    return [run_status(root, jobs, now, note) for root in roots]


def unfinished_jobs(root: Path) -> list[Job]:
    """The jobs of a run whose stages are not recorded as finished."""
    submission, _ = read_submission_safely(root)
    if submission is None:
        return []
    finished = {plan.name for plan in planned_stages(root) if is_finished(plan, root)}
    return [job for name, job in submission.jobs.items() if name not in finished]


def run_status(
    root: Path, jobs: Mapping[int, JobState] | None, now: float, note: str | None = None
) -> RunStatus:
    """How a run directory stands.

    Args:
        root: the run directory.
        jobs: what SLURM says, by job id; None where it could not be asked.
        now: seconds since 1970.
        note: why SLURM could not be asked.
    """
    submission, fault = read_submission_safely(root)
    planned = planned_stages(root)
    pipeline = (root / "pipeline.yaml").is_file()
    held = lock_owner(root)
    # `submit` holds a run too, for a moment; `run` holds it and has started something
    runner = held if held and pipeline and started_since(planned, held.since) else None
    stages: dict[str, StageStatus] = {}
    for plan in dependency_order(planned):
        before = tuple(stages[name] for name in plan.needs if name in stages)
        job = submission.jobs.get(plan.name) if submission else None
        said = jobs.get(job.id) if job and jobs else None
        known = said if job and said and is_same_job(job, said) else None
        asked = jobs is not None
        stage = StageEvidence(plan, read_stage_files(plan, root), job, known, asked, runner, before)
        stages[plan.name] = stage_status(stage, now)
    listed = tuple(stages[plan.name] for plan in planned)
    unread = None if planned else f"{root / 'pipeline.yaml'}: cannot be read"
    concerned = note if jobs is None and has_unfinished_jobs(submission, listed) else None
    page = root / "index.html"
    return RunStatus(
        root.name,
        root,
        "pipeline" if pipeline else "recipe",
        overall_state(listed),
        sum(stage.state == "finished" for stage in listed),
        listed,
        submission.cluster.name if submission else None,
        tracking_info(root),
        page if page.is_file() else None,
        held,
        tuple(each for each in (unread, fault, concerned) if each),
    )


def has_unfinished_jobs(submission: Submission | None, stages: Iterable[StageStatus]) -> bool:
    """Whether SLURM would have something to say of an unfinished stage."""
    unfinished = {stage.stage for stage in stages if stage.state != "finished"}
    return submission is not None and bool(unfinished & set(submission.jobs))


def dependency_order(planned: Sequence[StagePlan]) -> list[StagePlan]:
    """Each stage after what it needs; those of a circle, which no pipeline has, at the end."""
    placed: list[StagePlan] = []
    names: set[str] = set()
    rest = list(planned)
    while rest:
        ready = [plan for plan in rest if set(plan.needs) <= names] or rest
        placed += ready
        names |= {plan.name for plan in ready}
        rest = [plan for plan in rest if plan.name not in names]
    return placed


def overall_state(stages: Sequence[StageStatus]) -> State:
    """The state of a run from those of its stages."""
    states = {stage.state for stage in stages}
    if states == {"finished"}:
        return "finished"
    return next((state for state in STATE_ORDER if state in states), "unknown")


def tracking_info(root: Path) -> TrackingInfo | None:
    """Where MLflow has a run; before it has one, where this shell would track it."""
    sent, store = read_json(root / "tracking.json"), root.parent / "mlflow.db"
    known = [sent.get("store"), os.environ.get("MLFLOW_TRACKING_URI")]
    if store.is_file():
        known.append(f"sqlite:///{store}")
    uri = next((each for each in known if isinstance(each, str) and each), None)
    run_id = sent.get("run_id")
    if uri is None:
        return None
    return TrackingInfo(redact(uri), run_id if isinstance(run_id, str) else None)
