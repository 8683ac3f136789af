"""Note one start of a job, and give up after too many.

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
    """Note that a job starts in `directory`, as SLURM's variables tell.

    Raises:
        UserError: the cluster file's number of restarts brought no newer checkpoint.
    """
    for name in ("exit_code", "refused"):
        (directory / name).unlink(missing_ok=True)
    submission = read_submission(directory) or read_submission(directory.parent)
    if submission is None or "SLURM_JOB_ID" not in environment:
        raise UserError(f"{directory}: holds no submitted job; start it with `mezzotint submit`")
    attempt = JobStart(
        int(environment["SLURM_JOB_ID"]),
        int(environment.get("SLURM_RESTART_COUNT", "0")),
        expand_nodes(environment["SLURM_JOB_NODELIST"]),
        newest_step(directory / "checkpoints"),
        time.time(),
    )
    fruitless = restarts_without_progress(read_job_starts(directory), attempt)
    if fruitless > submission.cluster.restarts:
        raise UserError(
            f"{directory}: {fruitless} starts in a row ended without a checkpoint newer than step "
            f"{attempt.step}; the job gives up. See what ended them above, put it right, and "
            "submit again"
        )
    append_job_start(directory, attempt)
    return attempt


def restarts_without_progress(earlier: Sequence[JobStart], now: JobStart) -> int:
    """Starts of the same job, just before `now`, that brought no newer checkpoint.

    Ids start again at 1 on a fresh cluster: a restart count that does not rise is another job.
    """
    count, last = 0, now
    for attempt in reversed(earlier):
        if attempt.job != now.job or attempt.restart >= last.restart or attempt.step != now.step:
            break
        count, last = count + 1, attempt
    return count


def newest_step(checkpoints: Path) -> int:
    """The newest step with a committed checkpoint; 0 without one."""
    steps = [path.parent.name for path in checkpoints.glob("step-*/MANIFEST.json")]
    return max((int(name.removeprefix("step-")) for name in steps), default=0)


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -P -m launch.slurm.restart_limit DIRECTORY")
    attempt = record_start(Path(sys.argv[1]), os.environ)
    again = f" (restart {attempt.restart})" if attempt.restart else ""
    words = f"job: {attempt.job}{again} starts on {', '.join(attempt.nodes)}"
    sys.stdout.write(f"{words}, from step {attempt.step}\n" if attempt.step else f"{words}\n")


if __name__ == "__main__":
    run_command(main)
