"""The status of one stage: SLURM's state of its job combined with the files of its directory.

SLURM's state counts while a job is active. The record of a finished stage always counts: SLURM
purges jobs after minutes, and may not be installed on this machine.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.slurm.client import JobState
from launch.slurm.records import Job, JobStart
from launch.status.diagnosis import external_end, failure_reason, pending_reason, requeue_reason
from launch.status.run_files import StageFiles, StagePlan
from mezzotint.common.locks import LockOwner

State = Literal[
    "finished",
    "running",
    "pending",
    "waiting",
    "requeued",
    "failed",
    "cancelled",
    "stopped",
    "not submitted",
    "unknown",
]
"""`waiting`: for other stages; `stopped`: started, unfinished, and no process works on it."""
LIVE: tuple[State, ...] = ("running", "requeued", "pending", "waiting")
STARTING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
ENDED: tuple[State, ...] = ("finished", "failed", "cancelled", "unknown")
"""In these states, the nodes of the last start are shown."""
CLOCK_TOLERANCE = 120.0
"""Seconds by which the clocks of this machine and of SLURM's controller may differ."""


@dataclass(frozen=True)
class StageStatus:
    """The status of one stage. Times are seconds since 1970; None: not known."""

    stage: str
    kind: str
    directory: Path
    state: State
    reason: str | None
    since: float | None
    job: int | None
    live_job: bool
    """Whether its job is pending or running."""
    nodes: tuple[str, ...]
    phase: str | None
    step: int | None
    steps: int | None
    loss: float | None
    images_per_second: float | None
    seconds_left: float | None
    last_report: float | None
    """Time of its last progress report."""
    restarts: int
    """Starts of its jobs beyond the first."""


@dataclass(frozen=True)
class StageVerdict:
    """The state of a stage, and why."""

    state: State
    reason: str | None = None
    since: float | None = None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageEvidence:
    """What is known of a stage."""

    plan: StagePlan
    files: StageFiles
    job: Job | None
    job_state: JobState | None
    slurm_answered: bool
    runner: LockOwner | None
    """The process of `mezzotint run` that works on the pipeline."""
    needs: tuple[StageStatus, ...]
    """The stages it waits for."""

    @property
    def blocked_by(self) -> str | None:
        """Why a stage that it waits for will not finish; None if it can."""
        for stage in self.needs:
            if stage.state == "failed":
                return f"stage {stage.stage} failed"
            if stage.state == "cancelled":
                inherited = (stage.reason or "").startswith("stage ")
                return stage.reason if inherited else f"stage {stage.stage} was cancelled"
        return None

    @property
    def unfinished_needs(self) -> tuple[str, ...]:
        return tuple(stage.stage for stage in self.needs if stage.state != "finished")

    @property
    def waits_for(self) -> str:
        """The stages it still waits for, as a sentence."""
        names = self.unfinished_needs
        return f"waits for {', '.join(names)}" if names else "waits for earlier stages"

    @property
    def is_cancelled(self) -> bool:
        """Whether `mezzotint cancel` has cancelled the present job."""
        mark, job = self.files.cancelled, self.job
        return mark is not None and job is not None and mark > job.submitted - 1.0

    @property
    def last_start(self) -> JobStart | None:
        """The last start of the present job."""
        if self.job is None or not self.files.starts:
            return None
        last = self.files.starts[-1]
        return last if last.time > self.job.submitted - CLOCK_TOLERANCE else None


def stage_status(stage: StageEvidence, now: float) -> StageStatus:
    """The status of a stage."""
    verdict, files, start = classify(stage), stage.files, stage.last_start
    report, running = files.progress, verdict.state == "running"
    if running and report and start and start.time > report.time:
        report = None  # of an earlier start
    metrics = files.metrics if report or not running else {}
    losses = [value for name, value in metrics.items() if name.startswith("loss/")]
    left = report.seconds_left if report and running else None
    return StageStatus(
        stage=stage.plan.name,
        kind=stage.plan.kind,
        directory=stage.plan.directory,
        state=verdict.state,
        reason=verdict.reason,
        since=verdict.since,
        job=stage.job.id if stage.job else None,
        live_job=stage.job_state is not None and stage.job_state.is_live,
        nodes=verdict.nodes or (start.nodes if start and verdict.state in ENDED else ()),
        phase=report.phase if report else None,
        step=report.done if report else start.step if start else None,
        steps=files.progress.total if files.progress else files.steps,
        loss=losses[0] if losses else None,
        images_per_second=metrics.get("images_per_second"),
        seconds_left=max(0.0, left - (now - report.time)) if report and left else left,
        last_report=report.time if report else None,
        restarts=max(len(files.starts) - 1, stage.job_state.restarts if stage.job_state else 0, 0),
    )


def classify(stage: StageEvidence) -> StageVerdict:
    """The state of a stage, and why."""
    if stage.files.finished is not None:
        return StageVerdict("finished", None, stage.files.finished)
    if stage.job_state is not None and stage.job_state.is_live:
        return classify_live_job(stage, stage.job_state)
    local = classify_local_process(stage)
    if local is not None:
        return local
    if stage.job is not None:
        return classify_ended_job(stage, stage.job)
    return classify_idle(stage)


def classify_live_job(stage: StageEvidence, job: JobState) -> StageVerdict:
    """A stage whose job is pending or running."""
    if job.state not in STARTING:
        reason = {"COMPLETING": "is ending", "SUSPENDED": "is suspended by SLURM"}.get(job.state)
        if stage.is_cancelled:
            reason = "is being cancelled"
        return StageVerdict("running", reason, job.started, job.nodes)
    if job.reason == "DependencyNeverSatisfied":
        return StageVerdict("cancelled", stage.blocked_by or "an earlier stage did not finish")
    if job.reason == "Dependency":
        return StageVerdict("waiting", stage.waits_for, job.submitted)
    if job.restarts == 0 and job.state == "PENDING":
        return StageVerdict("pending", pending_reason(job), job.submitted)
    reasons = filter(None, (requeue_reason(stage.files), pending_reason(job)))
    return StageVerdict("requeued", "; ".join(reasons) or None, job.submitted)


def classify_local_process(stage: StageEvidence) -> StageVerdict | None:
    """A stage that a process without SLURM works on; None if there is no such process."""
    files, runner, owner = stage.files, stage.runner, stage.files.lock_owner
    if owner is not None:
        return StageVerdict("running", None, owner.since, (owner.host,) if owner.host else ())
    if runner is None:
        return None
    if files.log_time is None or files.log_time < runner.since - 1.0:
        if stage.blocked_by:
            return StageVerdict("cancelled", stage.blocked_by)
        return StageVerdict(
            "waiting", stage.waits_for if stage.unfinished_needs else "waits for free cores"
        )
    if files.exit_time is not None and files.exit_time >= runner.since - 1.0:
        return StageVerdict("failed", failure_reason(None, files.exit_code, files), files.exit_time)
    return StageVerdict("running", None, None, (runner.host,) if runner.host else ())


def classify_ended_job(stage: StageEvidence, job: Job) -> StageVerdict:
    """A stage whose job has ended, is unknown to SLURM, or cannot be queried."""
    files, state = stage.files, stage.job_state
    if stage.is_cancelled:
        return StageVerdict("cancelled", "by `mezzotint cancel`", files.cancelled)
    unrecorded = "its job succeeded but did not record the stage as finished"
    if state is not None:
        if state.state == "CANCELLED":
            return StageVerdict("cancelled", stage.blocked_by or "by scancel", state.ended)
        if state.state == "COMPLETED":
            return StageVerdict("unknown", unrecorded, state.ended, state.nodes)
        reason = failure_reason(state, None, files)
        return StageVerdict("failed", reason, state.ended, state.nodes)
    start = stage.last_start
    since = start.time if start else job.submitted
    if files.exit_time is not None and files.exit_time > since - 1.0:
        if files.exit_code == 0:
            return StageVerdict("unknown", unrecorded, files.exit_time)
        return StageVerdict("failed", failure_reason(None, files.exit_code, files), files.exit_time)
    end = external_end(files)
    if end is not None and start is not None:
        if end[1] == "CANCELLED":
            return StageVerdict("cancelled", "by scancel", files.log_time)
        reason = f"exit code {end[0]}, ended by SLURM ({end[1]})"
        return StageVerdict("failed", reason, files.log_time)
    if stage.blocked_by:
        return StageVerdict("cancelled", stage.blocked_by)
    if not stage.slurm_answered:
        return StageVerdict("unknown", f"SLURM cannot be queried for job {job.id}")
    return StageVerdict("unknown", f"SLURM no longer knows job {job.id}, and there is no exit code")


def classify_idle(stage: StageEvidence) -> StageVerdict:
    """An unfinished stage without a job and without a process."""
    files = stage.files
    if files.exit_code:
        return StageVerdict("failed", failure_reason(None, files.exit_code, files), files.exit_time)
    if files.error is not None:
        return StageVerdict("failed", files.error, files.error_time)
    if files.has_output:
        last = files.progress.time if files.progress else None
        return StageVerdict("stopped", "no process works on it; the same command resumes it", last)
    if stage.blocked_by:
        return StageVerdict("cancelled", stage.blocked_by)
    return StageVerdict("not submitted")


def is_same_job(job: Job, state: JobState) -> bool:
    """Whether SLURM's state is of this job: a new cluster counts ids from 1 again."""
    if state.name != job.name:
        return False
    if state.submitted is None:
        return True
    late = state.submitted - job.submitted
    return late > -CLOCK_TOLERANCE and (state.restarts > 0 or late < CLOCK_TOLERANCE)
