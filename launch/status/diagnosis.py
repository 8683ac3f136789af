"""Why a job is pending or has failed."""

import re

from launch.errors import BAD_INPUT
from launch.slurm.client import JobState
from launch.status.run_files import StageFiles, read_tail
from mezzotint.common.storage_errors import redact
from trainer.signals import PREEMPTED

LOG_NOT_OPENED = 53
"""The signal SLURM names when a node could not open the job's log."""
PENDING_REASONS = {
    "Priority": "other jobs have priority",
    "Resources": "waits for free nodes",
    "BeginTime": "waits for its begin time",
    "Cleaning": "SLURM is cleaning up its last start",
    "JobHeldUser": "is held; `scontrol release {id}` releases it",
    "JobHeldAdmin": "is held by an administrator",
    "launch failed requeued held": "a node could not start it and SLURM holds it; "
    "`scontrol release {id}` tries again",
    "PartitionNodeLimit": "requests more nodes than its partition allows",
    "PartitionTimeLimit": "requests more time than its partition allows",
    "PartitionConfig": "requests more than its partition has",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is not active",
    "ReqNodeNotAvail": "nodes it needs are down, drained or reserved",
    "Nodes required for job are DOWN": "nodes it needs are down, drained or reserved",
    "BadConstraints": "no node fits its constraints",
    "Licenses": "waits for a licence",
    "Reservation": "waits for its reservation",
    "Assoc": "a limit of the account is reached",
    "QOS": "a limit of the quality of service is reached",
    "Dependency": "waits for other jobs",
}
END_REASONS = {
    "TIMEOUT": "reached its time limit (`time` in the cluster file)",
    "OUT_OF_MEMORY": "used more memory than requested (`memory` in the cluster file)",
    "DEADLINE": "could not start before its deadline",
    "PREEMPTED": "was preempted by another job",
    "BOOT_FAIL": "its node did not boot",
}
_RANK = r"^(?:\s*\d+: ?|\[rank\d+\]:\s*)?"
_INPUT_ERROR = re.compile(_RANK + r"error: (.+)$")
_ERROR = re.compile(_RANK + r"(?:error: (.+)|((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*))$")
_START = re.compile(r"^job: \d+ .*starts on ", re.MULTILINE)
_EXTERNAL_END = re.compile(r"^job: exit code (\d+); ended by SLURM \((\w*).*\)", re.MULTILINE)
_REQUEUED = re.compile(r"^job: exit code (\d+); requeued$", re.MULTILINE)


def pending_reason(job: JobState) -> str | None:
    """Why SLURM has not started a job; SLURM's own word if there is no better text."""
    for word, meaning in PENDING_REASONS.items():
        if job.reason.startswith(word):
            exact = job.reason in PENDING_REASONS or " " in word
            return meaning.format(id=job.id) + ("" if exact else f" ({job.reason})")
    return job.reason or None


def external_end(files: StageFiles) -> tuple[int, str] | None:
    """Exit code and SLURM's state of a job that SLURM ended, from its log."""
    found = _EXTERNAL_END.search(_last_start(files))
    return (int(found[1]), found[2]) if found else None


def requeue_reason(files: StageFiles) -> str | None:
    """What ended the last start of a requeued job, from its log."""
    log = _last_start(files)
    found = _REQUEUED.search(log)
    if found is None:
        return None
    code = int(found[1])
    if code == PREEMPTED:
        return "saved a checkpoint on SLURM's signal"
    error = last_error(log, code)
    return f"ended with exit code {code}{f': {error}' if error else ''}"


def failure_reason(job: JobState | None, code: int | None, files: StageFiles) -> str:
    """What ended a job, with the last error of its log."""
    if job is not None and job.signal == LOG_NOT_OPENED:
        where = f" on {', '.join(job.nodes)}" if job.nodes else ""
        return (
            f"its log directory is not visible{where}: `shared` in the cluster file must name a "
            "directory that every node sees"
        )
    if job is not None and job.state == "NODE_FAIL":
        return f"node failure ({', '.join(job.nodes)})" if job.nodes else "node failure"
    if job is not None and job.state in END_REASONS:
        return END_REASONS[job.state]
    if job is not None and job.exit_code is not None:
        code = job.exit_code
    if code is None:
        ended = f"signal {job.signal}" if job and job.signal else "no exit code"
    else:
        ended = f"exit code {code}"
    error = last_error(read_tail(files.log), code) if files.log else None
    if code == BAD_INPUT and files.refused:
        error = redact(files.refused.splitlines()[0])
    return f"{ended}: {error}" if error else ended


def last_error(log: str, code: int | None) -> str | None:
    """The last `error:` line or exception of a log; after exit code 2, the last `error:` line.

    Lines of SLURM itself (`srun: error: ...`) are skipped.
    """
    pattern = _INPUT_ERROR if code == BAD_INPUT else _ERROR
    for line in reversed(log.splitlines()):
        found = pattern.match(line)
        if found is not None:
            return redact((found[1] or found[2]).strip())
    return None


def _last_start(files: StageFiles) -> str:
    """The log of the job's last start."""
    return _START.split(read_tail(files.log))[-1] if files.log else ""
