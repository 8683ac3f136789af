"""End the jobs of a run: what was trained stays, and the same `submit` goes on from there."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.slurm import client
from launch.slurm.records import stage_directory
from launch.status.lookup import find_stage
from launch.status.run import RunStatus, query
from launch.status.run_files import planned_stages
from launch.status.stage import StageStatus
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_text

if TYPE_CHECKING:
    from trainer.tracking.run_log import Status

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cancelled:
    """A job that was told to end, and what it was doing."""

    stage: str
    job: int
    state: str


def cancel(root: Path, stage: str | None) -> tuple[Cancelled, ...]:
    """End the live jobs of a run, or of one stage and of those that wait for it.

    Raises:
        UserError: no such stage, SLURM cannot be asked or refuses, or the run is not SLURM's but
            held by a live process.
    """
    wanted = {plan.name for plan in planned_stages(root)}
    if stage is not None:
        wanted = waiting_stages(find_stage(stage, root).name, root)
    (run,) = query([root])
    chosen = [each for each in run.stages if each.stage in wanted and each.live_job]
    if not chosen:
        check_cancellable(run, wanted)
    told = tuple(
        Cancelled(each.stage, each.job, each.state) for each in chosen if each.job is not None
    )
    marks = [stage_directory(root, each.stage) / "cancelled" for each in told]
    try:
        for mark in marks:  # before scancel: a job's script that finds it does not requeue itself
            mark.parent.mkdir(parents=True, exist_ok=True)
            write_text(mark, f"{time.time():.0f}\n")
        client.cancel_jobs(each.job for each in told)
    except OSError as error:
        remove_marks(marks)
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from error
    except UserError:
        remove_marks(marks)
        raise
    record_killed(root, told)
    return told


def record_killed(root: Path, told: Sequence[Cancelled]) -> None:
    """End the runs of jobs that had not started; one that runs ends its own as it leaves."""
    ended: dict[str, Status] = {each.stage: "KILLED" for each in told if each.state != "running"}
    if not ended:
        return
    from launch.pipeline.tracking import update_status
    from launch.train.local import tracking_from_environment

    pipeline = (root / "pipeline.yaml").is_file()
    try:
        update_status(root, tracking_from_environment(root=root if pipeline else None), ended)
    except UserError as error:  # from another working directory, say
        log.warning("cancelled all the same, but not noted as killed for MLflow: %s", error)


def remove_marks(marks: Sequence[Path]) -> None:
    """Take marks back: the jobs go on."""
    for mark in marks:
        mark.unlink(missing_ok=True)


def waiting_stages(name: str, root: Path) -> set[str]:
    """A stage and all that wait for it."""
    found = {name}
    planned = planned_stages(root)
    while True:
        more = {plan.name for plan in planned if found & set(plan.needs)} - found
        if not more:
            return found
        found |= more


def check_cancellable(run: RunStatus, wanted: set[str]) -> None:
    """Say why a run that works without SLURM, or cannot be asked for, is not cancelled."""
    alive = [each for each in run.stages if each.stage in wanted and each.state == "running"]
    if run.holder is not None and alive:
        pid, host = run.holder.pid, run.holder.host
        process = f"process {pid} on {host}" if pid and host else "a live process"
        way = f" (or kill -TERM {pid} on {host})" if pid and host else ""
        raise UserError(
            f"{run.name}: is run by {process}, not by SLURM; press Ctrl-C in its terminal{way}: it "
            "saves a checkpoint and leaves"
        )
    if run.notes and not all(is_known(each) for each in run.stages if each.stage in wanted):
        raise UserError("; ".join(run.notes))


def is_known(stage: StageStatus) -> bool:
    """Whether it is known that a stage has no live job."""
    return stage.state != "unknown"


def to_text(told: Sequence[Cancelled], run: str) -> str:
    """What was done, for people."""
    if not told:
        return f"{run}: nothing of it waits or runs"
    lines = [f"{each.stage}: job {each.job} cancelled, was {each.state}" for each in told]
    lines.append("Checkpoints stay: the same `mezzotint submit` goes on from there.")
    return "\n".join(lines)
