"""`mezzotint logs`: the end of a stage's log, and what is appended to it."""

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
"""Seconds between two reads of a log."""
QUERY_INTERVAL = 3.0
"""Seconds between two queries whether the stage has ended."""
STATE_ORDER = ("running", "failed", "requeued", "stopped", "unknown", "cancelled")
"""Without the name of a stage, the first stage with a log in the first of these states is shown."""


def show_log(root: Path, stage: str | None, lines: int, *, follow: bool) -> None:
    """Print the end of a stage's log; with `follow`, until the stage ends.

    Raises:
        UserError: no such stage, or it has no log.
    """
    if stage is None:
        (run,) = query([root])
        chosen = default_stage(run)
    else:
        chosen = query_stage(root, find_stage(stage, root).name)
    log = newest_log(chosen.directory)
    if log is None and follow:
        log = wait_for_log(chosen, root)
    if log is None:
        raise UserError(f"{chosen.stage}: {explain_missing_log(chosen)}")
    sys.stderr.write(f"{chosen.stage} ({chosen.state}): {log}\n")
    sys.stderr.flush()
    with log.open("rb") as file:
        tail = b"".join(deque(file, maxlen=lines))
        sys.stdout.write(tail.decode("utf-8", errors="replace"))
        sys.stdout.flush()
        if follow:
            follow_file(file, lambda: query_stage(root, chosen.stage).state not in LIVE)


def default_stage(run: RunStatus) -> StageStatus:
    """The stage whose log is shown if none is named."""
    logged = [stage for stage in run.stages if newest_log(stage.directory)]
    for state in STATE_ORDER:
        for stage in logged:
            if stage.state == state:
                return stage
    for stage in run.stages:
        if stage.state in LIVE:
            return stage
    if not logged:
        reason = explain_missing_log(run.stages[0]) if run.stages else None
        raise UserError(f"{run.name}: {reason}" if reason else run.notes[0])
    return max(logged, key=lambda stage: stage.since or 0.0)


def explain_missing_log(stage: StageStatus) -> str:
    """Why a stage has no log."""
    if stage.state in LIVE and stage.state != "running":
        return f"is {stage.state}{f' ({stage.reason})' if stage.reason else ''}: it has no log yet"
    return "has no log; `mezzotint train` writes to its own terminal"


def query_stage(root: Path, stage: str) -> StageStatus:
    """The current status of a stage."""
    (run,) = query([root])
    return next(each for each in run.stages if each.stage == stage)


def wait_for_log(stage: StageStatus, root: Path) -> Path | None:
    """Wait for a stage to start; None if it ends without a log."""
    if stage.state in LIVE:
        sys.stderr.write(f"{stage.stage}: {explain_missing_log(stage)}\n")
        sys.stderr.flush()
    while newest_log(stage.directory) is None and query_stage(root, stage.stage).state in LIVE:
        time.sleep(QUERY_INTERVAL)
    return newest_log(stage.directory)


def follow_file(file: BinaryIO, has_ended: Callable[[], bool]) -> None:
    """Print what is appended to a log until its writer has ended."""
    queried, decode = time.monotonic(), getincrementaldecoder("utf-8")("replace").decode
    while True:
        ended = False
        if time.monotonic() - queried > QUERY_INTERVAL:
            queried, ended = time.monotonic(), has_ended()
        if os.fstat(file.fileno()).st_size < file.tell():  # truncated
            file.seek(0)
        new = file.read()  # after the query, so that everything before the end is read
        sys.stdout.write(decode(new))
        sys.stdout.flush()
        if ended:
            return
        time.sleep(READ_INTERVAL)
