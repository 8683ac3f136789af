"""How one stage of a run stands: SLURM's word on its job, put together with its directory's.

SLURM's word wins while a job lives. The record of a finished stage wins always: SLURM forgets jobs
after minutes, and may not be at hand at all.
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
"""Of a stage: `waiting` is for other stages, `stopped` is begun, unfinished and held by nobody."""
LIVE: tuple[State, ...] = ("running", "requeued", "pending", "waiting")
STARTING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
ENDED: tuple[State, ...] = ("finished", "failed", "cancelled", "unknown")
"""Of these, the nodes of the last start are told."""
CLOCK_TOLERANCE = 120.0
"""Seconds by which the clocks of this machine and of SLURM's controller may differ."""


@dataclass(frozen=True)
class StageStatus:
    """How one stage stands. Times are seconds since 1970; what is not known is None."""

    stage: str
    kind: str
    directory: Path
    state: State
    reason: str | None
    since: float | None
    job: int | None
    live_job: bool
    """Whether SLURM still waits with its job or runs it."""
    nodes: tuple[str, ...]
    phase: str | None
    step: int | None
    steps: int | None
    loss: float | None
    images_per_second: float | None
    seconds_left: float | None
    heard: float | None
    """When it last told how far it is."""
    restarts: int
    """Starts of its jobs beyond the first."""


@dataclass(frozen=True)
class StageVerdict:
    """What a stage is found to be, and why."""

    state: State
    reason: str | None = None
    since: float | None = None
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageEvidence:
    """All that is known when a stage is judged."""

    plan: StagePlan
    trace: StageFiles
    job: Job | None
    said: JobState | None
    asked: bool
    """Whether SLURM was asked and answered."""
    runner: LockOwner | None
    """Who holds the pipeline on this machine."""
    before: tuple[StageStatus, ...]
    """The stages it waits for."""

    @property
    def broken(self) -> str | None:
        """Why what it waits for will not come."""
        for stage in self.before:
            if stage.state == "failed":
                return f"stage {stage.stage} failed"
            if stage.state == "cancelled":
                inherited = (stage.reason or "").startswith("stage ")
                return stage.reason if inherited else f"stage {stage.stage} was cancelled"
        return None

    @property
    def unfinished_before(self) -> tuple[str, ...]:
        """The stages it still waits for."""
        return tuple(stage.stage for stage in self.before if stage.state != "finished")

    @property
    def awaited(self) -> str:
        """What it waits for, in words."""
        names = self.unfinished_before
        return f"waits for {', '.join(names)}" if names else "waits for stages before it"


def stage_status(stage: StageEvidence, now: float) -> StageStatus:
    """How a stage stands."""
    finding, trace, attempt = classify(stage), stage.trace, last_start(stage)
    standing, running = trace.standing, finding.state == "running"
    if running and standing and attempt and attempt.time > standing.time:
        standing = None  # it has not told anything since it was started again
    metrics = trace.metrics if standing or not running else {}
    losses = [value for name, value in metrics.items() if name.startswith("loss/")]
    left = standing.seconds_left if standing and running else None
    reached = standing.done if standing else attempt.step if attempt else None
    steps = trace.standing.total if trace.standing else trace.steps
    return StageStatus(
        stage=stage.plan.name,
        kind=stage.plan.kind,
        directory=stage.plan.directory,
        state=finding.state,
        reason=finding.reason,
        since=finding.since,
        job=stage.job.id if stage.job else None,
        live_job=stage.said is not None and stage.said.live,
        nodes=finding.nodes or (attempt.nodes if attempt and finding.state in ENDED else ()),
        phase=standing.phase if standing else None,
        step=reached,
        steps=steps,
        loss=losses[0] if losses else None,
        images_per_second=metrics.get("images_per_second"),
        seconds_left=max(0.0, left - (now - standing.time)) if standing and left else left,
        heard=standing.time if standing else None,
        restarts=max(len(trace.attempts) - 1, stage.said.restarts if stage.said else 0, 0),
    )


def last_start(stage: StageEvidence) -> JobStart | None:
    """The last start of the stage's present job."""
    if stage.job is None or not stage.trace.attempts:
        return None
    last = stage.trace.attempts[-1]
    return last if last.time > stage.job.submitted - CLOCK_TOLERANCE else None


def classify(stage: StageEvidence) -> StageVerdict:
    """What a stage is, and why."""
    if stage.trace.finished is not None:
        return StageVerdict("finished", None, stage.trace.finished)
    if stage.said is not None and stage.said.live:
        return classify_live_job(stage, stage.said)
    local = classify_local_process(stage)
    if local is not None:
        return local
    if stage.job is not None:
        return classify_ended_job(stage, stage.job)
    return classify_idle(stage)


def classify_live_job(stage: StageEvidence, said: JobState) -> StageVerdict:
    """What a stage is whose job SLURM has."""
    if said.state not in STARTING:
        words = {"COMPLETING": "is ending", "SUSPENDED": "SLURM has suspended it"}.get(said.state)
        if is_cancelled(stage):
            words = "is being cancelled"
        return StageVerdict("running", words, said.started, said.nodes)
    if said.reason == "DependencyNeverSatisfied":
        return StageVerdict("cancelled", stage.broken or "a stage before it did not finish")
    if said.reason == "Dependency":
        return StageVerdict("waiting", stage.awaited, said.submitted)
    again = said.restarts > 0 or said.state != "PENDING"
    if not again:
        return StageVerdict("pending", pending_reason(said), said.submitted)
    told = "; ".join(filter(None, (requeue_reason(stage.trace), pending_reason(said))))
    return StageVerdict("requeued", told or None, said.submitted)


def classify_local_process(stage: StageEvidence) -> StageVerdict | None:
    """What a stage is that a process works on without SLURM; None where there is no process."""
    trace, runner = stage.trace, stage.runner
    own = trace.holder
    if own is not None:
        return StageVerdict("running", None, own.since, (own.host,) if own.host else ())
    if runner is None:
        return None
    if trace.logged is None or trace.logged < runner.since - 1.0:
        if stage.broken:
            return StageVerdict("cancelled", stage.broken)
        return StageVerdict(
            "waiting", stage.awaited if stage.unfinished_before else "waits for free cores"
        )
    if trace.exited is not None and trace.exited >= runner.since - 1.0:
        return StageVerdict("failed", failure_reason(None, trace.exit_code, trace), trace.exited)
    return StageVerdict("running", None, None, (runner.host,) if runner.host else ())


def classify_ended_job(stage: StageEvidence, job: Job) -> StageVerdict:
    """What a stage is whose job has ended, is forgotten, or cannot be asked for."""
    trace, said = stage.trace, stage.said
    if is_cancelled(stage):
        return StageVerdict("cancelled", "by `mezzotint cancel`", trace.cancelled)
    unrecorded = "its job ended well but has not recorded the stage as finished"
    if said is not None:
        if said.state == "CANCELLED":
            return StageVerdict("cancelled", stage.broken or "by scancel", said.ended)
        if said.state == "COMPLETED":
            return StageVerdict("unknown", unrecorded, said.ended, said.nodes)
        return StageVerdict("failed", failure_reason(said, None, trace), said.ended, said.nodes)
    attempt = last_start(stage)
    begun = attempt.time if attempt else job.submitted
    if trace.exited is not None and trace.exited > begun - 1.0:
        if trace.exit_code == 0:
            return StageVerdict("unknown", unrecorded, trace.exited)
        return StageVerdict("failed", failure_reason(None, trace.exit_code, trace), trace.exited)
    outside = external_end(trace)
    if outside is not None and attempt is not None:
        if outside[1] == "CANCELLED":
            return StageVerdict("cancelled", "by scancel", trace.logged)
        words = f"exit code {outside[0]}, ended by SLURM ({outside[1]})"
        return StageVerdict("failed", words, trace.logged)
    if stage.broken:
        return StageVerdict("cancelled", stage.broken)
    if not stage.asked:
        return StageVerdict("unknown", f"SLURM cannot be asked for job {job.id}")
    return StageVerdict("unknown", f"SLURM no longer knows job {job.id}, which left no exit code")


def classify_idle(stage: StageEvidence) -> StageVerdict:
    """What an unfinished stage is that has no job and no process."""
    trace = stage.trace
    if trace.exit_code:
        return StageVerdict("failed", failure_reason(None, trace.exit_code, trace), trace.exited)
    if trace.begun:
        heard = trace.standing.time if trace.standing else None
        return StageVerdict(
            "stopped", "nothing works on it; the same command goes on from here", heard
        )
    if stage.broken:
        return StageVerdict("cancelled", stage.broken)
    return StageVerdict("not submitted")


def is_cancelled(stage: StageEvidence) -> bool:
    """Whether `mezzotint cancel` has been asked to end the stage's present job."""
    mark, job = stage.trace.cancelled, stage.job
    return mark is not None and job is not None and mark > job.submitted - 1.0


def is_same_job(job: Job, said: JobState) -> bool:
    """Whether SLURM speaks of this job: ids start at 1 again on a fresh cluster."""
    if said.name != job.name:
        return False
    if said.submitted is None:
        return True
    late = said.submitted - job.submitted
    return late > -CLOCK_TOLERANCE and (said.restarts > 0 or late < CLOCK_TOLERANCE)
