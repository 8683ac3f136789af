"""Why a job waits or has failed, in words."""

import re

from launch.errors import BAD_INPUT
from launch.slurm.client import JobState
from launch.status.run_files import StageFiles, read_tail
from mezzotint.common.storage_errors import redact
from trainer.signals import PREEMPTED

LOG_NOT_OPENED = 53
"""The signal SLURM names when a node could not open the job's log."""
PENDING_REASONS = {
    "Priority": "other jobs come first",
    "Resources": "waits for free nodes",
    "BeginTime": "SLURM starts it in a moment",
    "Cleaning": "SLURM is still clearing its last start",
    "JobHeldUser": "is held; `scontrol release {id}` lets it go",
    "JobHeldAdmin": "is held by an administrator",
    "launch failed requeued held": "a node could not start it and SLURM holds it; "
    "`scontrol release {id}` tries again",
    "PartitionNodeLimit": "asks for more nodes than its partition gives",
    "PartitionTimeLimit": "asks for more time than its partition gives",
    "PartitionConfig": "asks for more than its partition has",
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
    "OUT_OF_MEMORY": "used more memory than it asked for (`memory` in the cluster file)",
    "DEADLINE": "could not start before its deadline",
    "PREEMPTED": "was pushed out by another job",
    "BOOT_FAIL": "its node did not boot",
}
_RANK = r"^(?:\s*\d+: ?|\[rank\d+\]:\s*)?"
_INPUT_ERROR = re.compile(_RANK + r"error: (.+)$")
_ERROR = re.compile(_RANK + r"(?:error: (.+)|((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*))$")
_START = re.compile(r"^job: \d+ .*starts on ", re.MULTILINE)
_EXTERNAL_END = re.compile(r"^job: exit code (\d+); ended from outside \((\w*).*\)", re.MULTILINE)
_REQUEUED = re.compile(r"^job: exit code (\d+); back into the queue$", re.MULTILINE)


def pending_reason(said: JobState) -> str | None:
    """SLURM's reason for not starting a job; its own word where no better is known."""
    for word, meaning in PENDING_REASONS.items():
        if said.reason.startswith(word):
            plain = said.reason in PENDING_REASONS or " " in word
            return meaning.format(id=said.id) + ("" if plain else f" ({said.reason})")
    return said.reason or None


def external_end(trace: StageFiles) -> tuple[int, str] | None:
    """Exit code of a job that something outside ended, and SLURM's word, as its log tells."""
    log = _START.split(read_tail(trace.log))[-1] if trace.log else ""
    found = _EXTERNAL_END.search(log)
    return (int(found[1]), found[2]) if found else None


def requeue_reason(trace: StageFiles) -> str | None:
    """What ended the last start of a job that is in the queue again, as its log tells."""
    log = _START.split(read_tail(trace.log))[-1] if trace.log else ""
    found = _REQUEUED.search(log)
    if found is None:
        return None
    code = int(found[1])
    if code == PREEMPTED:
        return "saved a checkpoint when it was told to leave"
    complaint = last_error(log, code)
    return f"ended with exit code {code}{f': {complaint}' if complaint else ''}"


def failure_reason(said: JobState | None, code: int | None, trace: StageFiles) -> str:
    """What ended a job, and what its log says of it."""
    if said is not None and said.signal == LOG_NOT_OPENED:
        where = f" on {', '.join(said.nodes)}" if said.nodes else ""
        return (
            f"its log directory is not visible{where}: `shared` in the cluster file must name a "
            "directory that every node sees"
        )
    if said is not None and said.state == "NODE_FAIL":
        return f"node failure ({', '.join(said.nodes)})" if said.nodes else "node failure"
    if said is not None and said.state in END_REASONS:
        return END_REASONS[said.state]
    if said is not None and said.exit_code is not None:
        code = said.exit_code
    if code is None:
        ended = f"signal {said.signal}" if said and said.signal else "no exit code"
    else:
        ended = f"exit code {code}"
    complaint = last_error(read_tail(trace.log), code) if trace.log else None
    if code == BAD_INPUT and trace.refused:
        complaint = redact(trace.refused.splitlines()[0])
    return f"{ended}: {complaint}" if complaint else ended


def last_error(log: str, code: int | None) -> str | None:
    """The last refusal or exception in a log (the last refusal after exit code 2).

    What SLURM adds (`srun: error: ...`) says nothing new and is passed over.
    """
    pattern = _INPUT_ERROR if code == BAD_INPUT else _ERROR
    for line in reversed(log.splitlines()):
        found = pattern.match(line)
        if found is not None:
            return redact((found[1] or found[2]).strip())
    return None
