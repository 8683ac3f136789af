"""What a stage prints: the end of its log, and what comes after."""

import os
import sys
import time
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from launch.status.lookup import find_stage
from launch.status.run import RunStatus, query
from launch.status.run_files import newest_log
from launch.status.stage import LIVE, StageStatus
from mezzotint.common.errors import UserError

READ_INTERVAL = 0.3
"""Seconds between two reads."""
QUERY_INTERVAL = 3.0
"""Seconds between two questions whether the stage has ended."""
STATE_ORDER = ("running", "failed", "requeued", "stopped", "unknown", "cancelled")
"""Whose log is shown where no stage is named: the first of these that has one."""


def show_log(root: Path, stage: str | None, lines: int, *, follow: bool) -> None:
    """Print the end of a stage's log; with `follow`, until the stage ends.

    Raises:
        UserError: no such stage, or it has no log.
    """
    (run,) = query([root])
    chosen = named_stage(run, stage, root) if stage else default_stage(run)
    log = stage_log(chosen)
    if log is None and follow:
        log = wait_for_log(chosen, root)
    if log is None:
        raise UserError(f"{chosen.stage}: {explain_missing_log(chosen)}")
    sys.stderr.write(f"{chosen.stage} ({chosen.state}): {log}\n")
    sys.stderr.flush()
    with log.open("rb") as file:
        sys.stdout.write(last_lines(file, lines))
        sys.stdout.flush()
        if follow:
            follow_file(file, lambda: query_stage(root, chosen.stage).state not in LIVE)


def named_stage(run: RunStatus, stage: str, root: Path) -> StageStatus:
    """The stage of that name."""
    name = find_stage(stage, root).name
    return next(each for each in run.stages if each.stage == name)


def default_stage(run: RunStatus) -> StageStatus:
    """The stage that is most worth looking at."""
    logs = {stage.stage: stage_log(stage) for stage in run.stages}
    for state in STATE_ORDER:
        for stage in run.stages:
            if stage.state == state and logs[stage.stage]:
                return stage
    for stage in run.stages:
        if stage.state in LIVE:
            return stage
    have = [stage for stage in run.stages if logs[stage.stage]]
    if not have:
        raise UserError(
            f"{run.name}: {explain_missing_log(run.stages[0])}" if run.stages else run.notes[0]
        )
    return max(have, key=lambda stage: stage.since or 0.0)


def stage_log(stage: StageStatus) -> Path | None:
    """The log of a stage."""
    return newest_log(stage.directory)


def explain_missing_log(stage: StageStatus) -> str:
    """Why there is nothing to show."""
    if stage.state in LIVE and stage.state != "running":
        return f"is {stage.state}{f' ({stage.reason})' if stage.reason else ''}: it has no log yet"
    return "has no log; `mezzotint train` writes to its own terminal"


def query_stage(root: Path, stage: str) -> StageStatus:
    """How a stage stands now."""
    (run,) = query([root])
    return next(each for each in run.stages if each.stage == stage)


def wait_for_log(stage: StageStatus, root: Path) -> Path | None:
    """Wait for a stage to start; None where it ends without a log."""
    if stage.state in LIVE:
        sys.stderr.write(f"{stage.stage}: {explain_missing_log(stage)}\n")
        sys.stderr.flush()
    while (log := stage_log(stage)) is None and query_stage(root, stage.stage).state in LIVE:
        time.sleep(QUERY_INTERVAL)
    return log


def last_lines(file: BinaryIO, lines: int) -> str:
    """The last lines of a file, read to its end."""
    return b"".join(deque(file, maxlen=lines)).decode("utf-8", errors="replace")


def follow_file(file: BinaryIO, ended: Callable[[], bool]) -> None:
    """Copy what is appended to a log until its writer has ended."""
    asked, decode = time.monotonic(), getincrementaldecoder("utf-8")("replace").decode
    while True:
        over = False
        if time.monotonic() - asked > QUERY_INTERVAL:
            asked, over = time.monotonic(), ended()
        if os.fstat(file.fileno()).st_size < file.tell():  # begun anew
            file.seek(0)
        new = file.read()  # after the question: what was written before the end is in it
        sys.stdout.write(decode(new))
        sys.stdout.flush()
        if over:
            return
        time.sleep(READ_INTERVAL)
