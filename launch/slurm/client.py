"""SLURM's commands: submit, query and cancel jobs."""

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mezzotint.common.errors import UserError

TIMEOUT = 60.0
"""Seconds to wait for a SLURM command."""
SQUEUE = ("JobID", "State", "NodeList", "Reason", "RestartCnt", "exit_code")
SACCT = ("JobIDRaw", "State", "NodeList", "ExitCode")
TIMES = ("SubmitTime", "StartTime", "EndTime")


@dataclass(frozen=True)
class JobState:
    """SLURM's state of one job. Times are seconds since 1970; None: not known."""

    id: int
    name: str
    state: str
    """PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL, ..."""
    nodes: tuple[str, ...] = ()
    reason: str = ""
    """SLURM's reason for a pending or failed job; may be empty."""
    restarts: int = 0
    exit_code: int | None = None
    """Of the batch script; None if it has not ended or was ended by a signal."""
    signal: int | None = None
    """The signal that ended the job; 53: its log could not be opened on the node."""
    submitted: float | None = None
    """Renewed by every requeue."""
    started: float | None = None
    ended: float | None = None

    @property
    def is_live(self) -> bool:
        """Whether the job is pending, running or completing."""
        return self.state not in ENDED


ENDED = frozenset(
    {
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "BOOT_FAIL", "DEADLINE", "REVOKED"),
    }
)


CONFIG_KEYS = {
    "account": "account",
    "partition": "partition or serial_partition",
    "time limit": "time",
    "memory": "memory",
    "gres": "gpus_per_node",
    "node configuration": "nodes, tasks_per_node, cpus_per_task, gpus_per_node or memory",
    "node count": "nodes",
    "processors": "tasks_per_node or cpus_per_task",
    "qos": "options",
    "feature": "options",
    "option": "options",
}
"""Words in sbatch's messages, and the keys of the cluster file that they refer to."""
TEMPORARY = ("Requested nodes are busy", "Required node not available")
"""Messages of `sbatch --test-only` for a job that would wait in the queue."""
UNREACHABLE = ("contact slurm controller", "configuration source")
"""Messages outside a cluster, or while its controller is down."""


def check_job(script: str, arguments: Sequence[str]) -> None:
    """Ask SLURM whether it would accept a job, without submitting it.

    Raises:
        UserError: SLURM is not installed, does not answer, or rejects the job.
    """
    done = run_slurm(("sbatch", "--test-only", *arguments), script)
    if done.returncode != 0 and not any(word in done.stderr for word in TEMPORARY):
        raise UserError(explain_refusal(error_line(done)))


def submit_job(script: Path, arguments: Sequence[str], after: Iterable[int]) -> int:
    """Submit a batch script whose job waits for others to succeed; returns its id.

    Raises:
        UserError: SLURM is not installed, does not answer, or rejects the job.
    """
    ids = ":".join(map(str, after))
    dependency = (f"--dependency=afterok:{ids}",) if ids else ()
    done = run_slurm(("sbatch", "--parsable", *dependency, *arguments, str(script)))
    if done.returncode != 0:
        raise UserError(explain_refusal(error_line(done)))
    return int(done.stdout.strip().partition(";")[0])


def explain_refusal(text: str) -> str:
    """An error of sbatch as one sentence that names a key of the cluster file."""
    for prefix in ("sbatch: ", "fatal: ", "error: ", "Batch job submission failed: "):
        text = text.removeprefix(prefix)
    text = text.removeprefix("allocation failure: ")
    if any(phrase in text for phrase in UNREACHABLE):
        return f"SLURM does not answer ({text}); submit on a login node of the cluster"
    keys = next((keys for word, keys in CONFIG_KEYS.items() if word in text.lower()), None)
    hint = f"; change {keys} in the cluster file" if keys else ""
    return f"SLURM rejects the job: {text}{hint}"


def job_states(ids: Iterable[int]) -> Mapping[int, JobState]:
    """The jobs that SLURM's controller, else its accounting, still knows, by id.

    Without accounting, ended jobs are unknown after MinJobAge (5 minutes by default).

    Raises:
        UserError: SLURM is not installed or does not answer.
    """
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    fields = ",".join(f"{field}:|" for field in (*SQUEUE, *TIMES, "Name"))
    listed = ",".join(map(str, wanted))
    command = ("squeue", "--noheader", "--states=all", f"--jobs={listed}", f"--Format={fields}")
    done = run_slurm(command)
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        raise UserError(f"squeue: {error_line(done)}")
    found = {}
    for line in done.stdout.splitlines():
        job = parse_squeue(line)
        if job is not None and job.id in wanted:
            found[job.id] = job
    missing = [each for each in wanted if each not in found]
    return {**found, **(query_accounting(missing) if missing else {})}


def query_accounting(ids: Sequence[int]) -> Mapping[int, JobState]:
    """The jobs that SLURM's accounting knows, by id; empty without accounting."""
    if shutil.which("sacct") is None:
        return {}
    fields = ",".join((*SACCT, "Submit", "Start", "End", "JobName"))
    listed = ",".join(map(str, ids))
    done = run_slurm(("sacct", "-X", "-n", "-P", f"--jobs={listed}", f"--format={fields}"))
    jobs = (parse_sacct(line) for line in done.stdout.splitlines() if done.returncode == 0)
    return {job.id: job for job in jobs if job is not None and job.id in ids}


def cancel_jobs(ids: Iterable[int]) -> None:
    """Cancel jobs; those that have already ended are ignored.

    Raises:
        UserError: SLURM is not installed, does not answer, or refuses.
    """
    wanted = [str(each) for each in sorted(set(ids))]
    if not wanted:
        return
    done = run_slurm(("scancel", "--quiet", *wanted))
    if done.returncode != 0 and "already completing or completed" not in done.stderr:
        raise UserError(f"scancel: {error_line(done)}")


def run_slurm(command: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a SLURM command; times in its output are seconds since 1970.

    Raises:
        UserError: it is not installed, or does not answer.
    """
    try:
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            env={**os.environ, "SLURM_TIME_FORMAT": "%s"},
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]}: SLURM is not installed here; submit on the cluster's login node, or "
            "load its module"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]}: SLURM did not answer in {TIMEOUT:.0f} s") from error


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error message of a SLURM command, in one line."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    lines = [line for line in lines if not line.startswith("Try ")]  # "... --help"
    return lines[-1] if lines else f"ended with exit code {done.returncode}"


def parse_squeue(line: str) -> JobState | None:
    """The job of a line of squeue; None for other lines (a name may hold line breaks)."""
    parts = line.split("|", len(SQUEUE) + len(TIMES))
    if len(parts) <= len(SQUEUE) + len(TIMES) or not parts[0].isdecimal():
        return None
    number, state, nodes, reason, restarts, status, submitted, started, ended, name = parts
    ran = state in ENDED and status.isdecimal()
    code, signal = decode_wait_status(int(status)) if ran else (None, None)
    return JobState(
        int(number),
        name.removesuffix("|"),
        state,
        expand_nodes(nodes),
        "" if reason == "None" else reason,
        int(restarts) if restarts.isdecimal() else 0,
        code,
        signal,
        parse_time(submitted),
        parse_time(started),
        parse_time(ended),
    )


def parse_sacct(line: str) -> JobState | None:
    """The job of a line of sacct; None for other lines."""
    parts = line.split("|", len(SACCT) + len(TIMES))
    if len(parts) <= len(SACCT) + len(TIMES) or not parts[0].isdecimal():
        return None
    number, state, nodes, status, submitted, started, ended, name = parts
    state = state.partition(" ")[0]  # CANCELLED by 1000
    code, _, signal = status.partition(":")
    killed = int(signal) if signal.isdecimal() and signal != "0" else None
    return JobState(
        int(number),
        name,
        state,
        () if nodes == "None assigned" else expand_nodes(nodes),
        exit_code=int(code) if state in ENDED and code.isdecimal() and not killed else None,
        signal=killed,
        submitted=parse_time(submitted),
        started=parse_time(started),
        ended=parse_time(ended),
    )


def decode_wait_status(status: int) -> tuple[int | None, int | None]:
    """Exit code and signal of a wait status (`waitpid`), one of them None."""
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None


def parse_time(text: str) -> float | None:
    """Seconds since 1970; None for N/A, NONE, Unknown."""
    return float(text) if text.isdecimal() else None


def expand_nodes(nodes: str) -> tuple[str, ...]:
    """The node names of a list like `n[1-3,7],gpu[08-10]`."""
    names: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        parts = re.split(r"\[([^\]]*)\]", name)
        choices = [
            [part]
            if index % 2 == 0
            else [one for each in part.split(",") for one in expand_range(each)]
            for index, part in enumerate(parts)
        ]
        names += ["".join(each) for each in itertools.product(*choices)]
    return tuple(names)


def expand_range(text: str) -> list[str]:
    """`08-10` as 08, 09, 10."""
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        return [text]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
