"""The status of runs: the states of their SLURM jobs combined with the files of their directories.

`run_status` is a pure function of a run directory, the states of its jobs and the time; `query`
queries SLURM and calls it.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.slurm import client
from launch.slurm.client import JobState
from launch.slurm.records import Job
from launch.status.run_files import (
    StagePlan,
    finished_at,
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
from trainer.tracking.address import sqlite_uri, tracking_uri

STATE_ORDER: tuple[State, ...] = (
    *LIVE,
    *("failed", "cancelled", "unknown", "stopped", "not submitted"),
)
"""The state of a run is the first of these that one of its stages has."""


@dataclass(frozen=True)
class TrackingInfo:
    """The MLflow run of a run; the address is shown without credentials."""

    uri: str
    run_id: str | None


@dataclass(frozen=True)
class RunStatus:
    """The status of a run."""

    name: str
    root: Path
    kind: Literal["pipeline", "recipe"]
    state: State
    done: int
    """Number of finished stages."""
    stages: tuple[StageStatus, ...]
    cluster: str | None
    tracking: TrackingInfo | None
    page: Path | None
    lock_owner: LockOwner | None
    """The live process that works on the run without SLURM."""
    notes: tuple[str, ...]
    """What could not be queried or read."""

    @property
    def ended(self) -> bool:
        """Whether no stage is pending or running, as far as is known."""
        unsure = bool(self.notes) and self.state == "unknown"
        return self.state not in LIVE and not unsure


def query(roots: Sequence[Path]) -> list[RunStatus]:
    """The current status of run directories; SLURM is queried once, if they have jobs at all."""
    ids = [job.id for root in roots for job in unfinished_jobs(root)]
    jobs: Mapping[int, JobState] | None = {}
    note = None
    try:
        jobs = client.job_states(ids)
    except UserError as error:
        jobs, note = None, f"SLURM cannot be queried: {error}"
    now = time.time()
    return [run_status(root, jobs, now, note) for root in roots]


def unfinished_jobs(root: Path) -> list[Job]:
    """The jobs of a run whose stages are not recorded as finished."""
    submission, _ = read_submission_safely(root)
    if submission is None:
        return []
    stages = planned_stages(root)
    finished = {stage.name for stage in stages if finished_at(stage, root) is not None}
    return [job for name, job in submission.jobs.items() if name not in finished]


def run_status(
    root: Path, jobs: Mapping[int, JobState] | None, now: float, note: str | None = None
) -> RunStatus:
    """The status of a run directory at `now`, in seconds since 1970.

    `jobs` are SLURM's states by job id; None if it could not be queried, and `note` says why.
    """
    submission, error = read_submission_safely(root)
    planned = planned_stages(root)
    is_pipeline = (root / "pipeline.yaml").is_file()
    owner = lock_owner(root)
    # `submit` locks a run too, for a moment; `run` locks it and has started a stage
    runner = owner if owner and is_pipeline and started_since(planned, owner.since) else None
    stages: dict[str, StageStatus] = {}
    for plan in dependency_order(planned):
        needs = tuple(stages[name] for name in plan.needs if name in stages)
        job = submission.jobs.get(plan.name) if submission else None
        state = jobs.get(job.id) if job and jobs else None
        if job and state and not is_same_job(job, state):
            state = None
        files = read_stage_files(plan, root)
        evidence = StageEvidence(plan, files, job, state, jobs is not None, runner, needs)
        stages[plan.name] = stage_status(evidence, now)
    listed = tuple(stages[plan.name] for plan in planned)
    unreadable = None if planned else f"{root / 'pipeline.yaml'}: cannot be read"
    unfinished = {stage.stage for stage in listed if stage.state != "finished"}
    has_jobs = submission is not None and bool(unfinished & set(submission.jobs))
    slurm_note = note if jobs is None and has_jobs else None
    page = root / "index.html"
    return RunStatus(
        root.name,
        root,
        "pipeline" if is_pipeline else "recipe",
        overall_state(listed),
        sum(stage.state == "finished" for stage in listed),
        listed,
        submission.cluster.name if submission else None,
        tracking_info(root),
        page if page.is_file() else None,
        owner,
        tuple(each for each in (unreadable, error, slurm_note) if each),
    )


def dependency_order(planned: Sequence[StagePlan]) -> list[StagePlan]:
    """Each stage after its dependencies; a cycle, in an edited file, comes last."""
    ordered: list[StagePlan] = []
    rest = list(planned)
    while rest:
        names = {plan.name for plan in ordered}
        ready = [plan for plan in rest if set(plan.needs) <= names] or rest
        ordered += ready
        rest = [plan for plan in rest if plan not in ready]
    return ordered


def overall_state(stages: Sequence[StageStatus]) -> State:
    """The state of a run from those of its stages."""
    states = {stage.state for stage in stages}
    if states == {"finished"}:
        return "finished"
    return next((state for state in STATE_ORDER if state in states), "unknown")


def tracking_info(root: Path) -> TrackingInfo | None:
    """The MLflow run of a run directory; before there is one, the store of this shell."""
    sent, store = read_json(root / "tracking.json"), root.parent / "mlflow.db"
    known = [sent.get("store"), tracking_uri()]
    if store.is_file():
        known.append(sqlite_uri(store))
    uri = next((each for each in known if isinstance(each, str) and each), None)
    run_id = sent.get("run_id")
    if uri is None:
        return None
    return TrackingInfo(redact(uri), run_id if isinstance(run_id, str) else None)
