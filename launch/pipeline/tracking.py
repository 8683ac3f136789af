"""The MLflow run of a whole pipeline: opened, set running again, and ended, by whoever comes first.

It lives in the pipeline's run directory (`opening.json`, `tracking.json`). The processes that share
it may be jobs on several nodes; locks on the shared file system keep them from making two. A server
that does not answer costs seconds and a warning, and what it missed is sent later.
"""

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from launch.errors import run_command
from launch.pipeline.config import started
from launch.pipeline.state import Ledger
from launch.train.local import link_from_environment
from mezzotint.common.locks import file_lock
from trainer.run import RunDirectory
from trainer.tracking import tracker
from trainer.tracking.run_log import (
    RunInfo,
    RunRecord,
    Status,
    TrackingConfig,
    begin,
    end,
    read_account,
    write_account,
)

LOCK, LOCK_WAIT = "opening.lock", 20.0
KIND = {"mezzotint.kind": "pipeline"}


def open_parent(root: Path, link: TrackingConfig | None) -> None:
    """Start a pipeline's run, or start it again with all that ended badly forgotten."""
    with file_lock(root / LOCK, LOCK_WAIT):
        begin(root, link.experiment if link else None, RunInfo(root.name, tags=KIND))
        forget(root, None)
    push(root, link)


def resume(root: Path, link: TrackingConfig | None, stage: str) -> None:
    """Note that a stage starts: the pipeline is running (again). Sends nothing; the stage does."""
    with file_lock(root / LOCK, LOCK_WAIT):
        if read_account(root) is None:
            begin(root, link.experiment if link else None, RunInfo(root.name, tags=KIND))
        forget(root, [stage])


def forget(root: Path, stages: Iterable[str] | None) -> None:
    """Count stages (all of them with None) as not ended, and the pipeline as running."""
    account = read_account(root)
    assert account is not None
    for stage in list(account.stages) if stages is None else stages:
        account.stages.pop(stage, None)
    account.status, account.ended = "RUNNING", None
    write_account(root, account)


def settle(
    root: Path, link: TrackingConfig | None, ended: Mapping[str, Status] | None = None
) -> None:
    """Bring the pipeline's run to what its stages came to, and MLflow to that.

    FINISHED when every stage is finished; FAILED or KILLED when one ended so for good, which
    `ended` says by stage; else RUNNING. A run that such a stage left open is ended too. In the run
    directory of a lone recipe, `ended` is about that run.
    """
    if not (root / "pipeline.yaml").is_file():
        for status in (ended or {}).values():
            close(root, link, status)
        return
    for stage, status in (ended or {}).items():
        close(root / stage, replace(link, root=root) if link else None, status)
    with file_lock(root / LOCK, LOCK_WAIT):
        account = read_account(root)
        if account is None:
            return
        ledger = Ledger(root)
        left = [stage for stage in started(root).stages if ledger.read(stage) is None]
        known = account.stages | dict(ended or {})
        account.stages = {stage: status for stage, status in known.items() if stage in left}
        conclude(account, left, root)
        write_account(root, account)
    push(root, link)


def conclude(account: RunRecord, left: list[str], root: Path) -> None:
    """The status of a pipeline with these stages not finished."""
    before = account.status
    account.status = "RUNNING" if left else "FINISHED"
    for status in ("KILLED", "FAILED"):
        if status in account.stages.values():
            account.status = "FAILED" if status == "FAILED" else "KILLED"
    if account.status == "RUNNING":
        account.ended = None
    elif account.status != before or account.ended is None:
        account.ended = time.time()
    account.artifacts = {"page": "index.html"} if (root / "index.html").is_file() else {}


def close(directory: Path, link: TrackingConfig | None, status: Status) -> None:
    """End a run that its processes did not end themselves."""
    account = read_account(directory)
    if account is not None and account.status == "RUNNING":
        end(directory, status)
        push(directory, link)


def push(directory: Path, link: TrackingConfig | None) -> None:
    """Send what is new of one run, or say why not; never raises for the server's sake."""
    if link is None:
        return
    own = replace(link, root=None) if link.root == directory else link
    tracker.push(RunDirectory(directory), own)


def main() -> None:
    """`python -P -m launch.pipeline.tracking ROOT STAGE FAILED|KILLED`: record a final status."""
    root, stage, word = sys.argv[1:]
    words: dict[str, Status] = {"FAILED": "FAILED", "KILLED": "KILLED"}
    path = Path(root)
    lone = not (path / "pipeline.yaml").is_file()
    link = link_from_environment(root=None if lone else path)
    settle(path, link, {stage: words[word]})


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    run_command(main)
