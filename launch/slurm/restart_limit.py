"""Record the start of a job, and fail after too many restarts without progress.

Run as `python -P -m launch.slurm.restart_limit DIRECTORY`.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.errors import run_command
from launch.slurm.client import expand_nodes
from launch.slurm.records import JobStart, append_job_start, read_job_starts, read_submission
from mezzotint.common.errors import UserError


def record_start(directory: Path, environment: Mapping[str, str]) -> JobStart:
    """Record that the job of SLURM's variables starts in `directory`.

    Raises:
        UserError: more than `restarts` of the cluster file brought no newer checkpoint.
    """
    for name in ("exit_code", "refused"):
        (directory / name).unlink(missing_ok=True)
    submission = read_submission(directory) or read_submission(directory.parent)
    if submission is None or "SLURM_JOB_ID" not in environment:
        raise UserError(f"{directory}: holds no submitted job; start it with `mezzotint submit`")
    start = JobStart(
        int(environment["SLURM_JOB_ID"]),
        int(environment.get("SLURM_RESTART_COUNT", "0")),
        expand_nodes(environment["SLURM_JOB_NODELIST"]),
        newest_step(directory / "checkpoints"),
        time.time(),
    )
    restarts = restarts_without_progress(read_job_starts(directory), start)
    if restarts > submission.cluster.restarts:
        raise UserError(
            f"{directory}: {restarts} starts in a row ended without a checkpoint newer than step "
            f"{start.step}; the job is not started again. Fix what ended them, see above, and "
            "submit again"
        )
    append_job_start(directory, start)
    return start


def restarts_without_progress(earlier: Sequence[JobStart], now: JobStart) -> int:
    """The number of starts of the same job just before `now` without a newer checkpoint.

    A new cluster counts ids from 1 again: a restart count that does not rise is another job.
    """
    count, last = 0, now
    for start in reversed(earlier):
        if start.job != now.job or start.restart >= last.restart or start.step != now.step:
            break
        count, last = count + 1, start
    return count


def newest_step(checkpoints: Path) -> int:
    """The step of the newest complete checkpoint; 0 without one."""
    steps = [path.parent.name for path in checkpoints.glob("step-*/MANIFEST.json")]
    return max((int(name.removeprefix("step-")) for name in steps), default=0)


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -P -m launch.slurm.restart_limit DIRECTORY")
    start = record_start(Path(sys.argv[1]), os.environ)
    restart = f" (restart {start.restart})" if start.restart else ""
    step = f", from step {start.step}" if start.step else ""
    nodes = ", ".join(start.nodes)
    sys.stdout.write(f"job: {start.job}{restart} starts on {nodes}{step}\n")


if __name__ == "__main__":
    run_command(main)
