"""`mezzotint cancel`: end the jobs of a run; its checkpoints stay."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.slurm import client
from launch.slurm.records import stage_directory
from launch.status.lookup import find_stage
from launch.status.run import RunStatus, dependency_order, query
from launch.status.run_files import planned_stages
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_text

if TYPE_CHECKING:
    from trainer.tracking.run_log import Status

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cancelled:
    """A cancelled job, and its state before."""

    stage: str
    job: int
    state: str


def cancel(root: Path, stage: str | None) -> tuple[Cancelled, ...]:
    """Cancel the live jobs of a run, or of one stage and of those that wait for it.

    Raises:
        UserError: no such stage, SLURM does not answer or refuses, or a live process without
            SLURM works on the run.
    """
    selected = {plan.name for plan in planned_stages(root)}
    if stage is not None:
        selected = waiting_stages(find_stage(stage, root).name, root)
    (run,) = query([root])
    live = [each for each in run.stages if each.stage in selected and each.live_job]
    if not live:
        check_cancellable(run, selected)
    jobs = tuple(
        Cancelled(each.stage, each.job, each.state) for each in live if each.job is not None
    )
    marks = [stage_directory(root, job.stage) / "cancelled" for job in jobs]
    try:
        for mark in marks:  # before scancel: a job script that finds it does not requeue itself
            mark.parent.mkdir(parents=True, exist_ok=True)
            write_text(mark, f"{time.time():.0f}\n")
        client.cancel_jobs(job.job for job in jobs)
    except (OSError, UserError) as error:
        for mark in marks:
            mark.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from error
        raise
    record_killed(root, jobs)
    return jobs


def record_killed(root: Path, jobs: Sequence[Cancelled]) -> None:
    """Set the status of jobs that had not started; a running job sets its own when it exits."""
    ended: dict[str, Status] = {job.stage: "KILLED" for job in jobs if job.state != "running"}
    if not ended:
        return
    from launch.pipeline.tracking import update_status
    from trainer.tracking.environment import tracking_from_environment

    is_pipeline = (root / "pipeline.yaml").is_file()
    try:
        update_status(root, tracking_from_environment(root=root if is_pipeline else None), ended)
    except UserError as error:  # such as recipes that are not in this working directory
        log.warning("cancelled, but MLflow was not updated: %s", error)


def waiting_stages(name: str, root: Path) -> set[str]:
    """A stage and all that wait for it."""
    found = {name}
    for stage in dependency_order(planned_stages(root)):
        if found & set(stage.needs):
            found.add(stage.name)
    return found


def check_cancellable(run: RunStatus, selected: set[str]) -> None:
    """Refuse a run without live jobs that a process works on, or whose jobs are not known.

    Raises:
        UserError: with the process, or why SLURM cannot be queried.
    """
    stages = [stage for stage in run.stages if stage.stage in selected]
    if run.lock_owner is not None and any(stage.state == "running" for stage in stages):
        pid, host = run.lock_owner.pid, run.lock_owner.host
        process = f"process {pid} on {host}" if pid and host else "a live process"
        step = f"`kill -TERM {pid}` on {host}" if pid and host else "send SIGTERM to it"
        raise UserError(
            f"{run.name}: is run by {process}, not by SLURM; {step}: training saves a checkpoint "
            "and exits, which Ctrl-C does for a pipeline only"
        )
    if run.notes and any(stage.state == "unknown" for stage in stages):
        raise UserError("; ".join(run.notes))


def to_json(jobs: Sequence[Cancelled], run: str) -> str:
    """One JSON object."""
    return json.dumps({"run": run, "cancelled": [asdict(job) for job in jobs]})


def to_text(jobs: Sequence[Cancelled], run: str) -> str:
    """One line per cancelled job."""
    if not jobs:
        return f"{run}: no pending or running jobs"
    lines = [f"{job.stage}: job {job.job} cancelled, was {job.state}" for job in jobs]
    lines.append("Checkpoints stay: the same `mezzotint submit` resumes from them.")
    return "\n".join(lines)
