"""The files of a stage's directory; a file that cannot be parsed counts as missing."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launch.progress import ProgressState, read_progress
from launch.slurm import records
from launch.slurm.records import TRAIN, JobStart, Submission, stage_directory
from mezzotint.common.errors import UserError
from mezzotint.common.files import finite
from mezzotint.common.locks import LockOwner, lock_owner

TAIL_BYTES = 65536
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class StagePlan:
    """A stage of a run's `pipeline.yaml`."""

    name: str
    kind: str
    directory: Path
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageFiles:
    """The contents of a stage's directory. Times are seconds since 1970; None: not there."""

    finished: float | None = None
    has_output: bool = False
    cancelled: float | None = None
    """When `mezzotint cancel` wrote its mark."""
    exit_code: int | None = None
    exit_time: float | None = None
    refused: str | None = None
    """The message of an input error."""
    starts: tuple[JobStart, ...] = ()
    progress: ProgressState | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    log: Path | None = None
    log_time: float | None = None
    lock_owner: LockOwner | None = None
    error: str | None = None
    """Why its run failed, by its record."""
    error_time: float | None = None


def planned_stages(root: Path) -> tuple[StagePlan, ...]:
    """The stages of a run directory; none if its pipeline cannot be read.

    The pipeline is not validated: its recipes may not exist in this working directory.
    """
    if not (root / "pipeline.yaml").is_file():
        return (StagePlan(TRAIN, "train", root),)
    stages = read_yaml(root / "pipeline.yaml").get("stages")
    if not isinstance(stages, Mapping):
        return ()
    found = []
    for name, stage in stages.items():
        settings = stage if isinstance(stage, Mapping) else {}
        after = settings.get("after")
        needed = set(_REFERENCE.findall(json.dumps(settings, default=str)))
        needed.update(after if isinstance(after, list | tuple) else ())
        needs = tuple(each for each in stages if each in needed)
        found.append(StagePlan(str(name), str(settings.get("kind", "")), root / str(name), needs))
    return tuple(found)


def read_submission_safely(root: Path) -> tuple[Submission | None, str | None]:
    """The last submission of a run, or None and why its file cannot be read."""
    try:
        return records.read_submission(root), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{root / 'submission.json'}: cannot be read ({type(error).__name__})"


def finished_at(plan: StagePlan, root: Path) -> float | None:
    """When a stage was recorded as finished, by `stage.json` or a recipe's `summary.json`."""
    path = plan.directory / ("summary.json" if plan.directory == root else "stage.json")
    return mtime(path) if read_json(path) else None


def read_stage_files(plan: StagePlan, root: Path) -> StageFiles:
    """Read a stage's directory."""
    directory = stage_directory(root, plan.name)
    log = newest_log(directory)
    progress, code = read_progress(directory), exit_code(directory)
    record = read_json(directory / "opening.json")
    failed = record.get("status") == "FAILED"
    return StageFiles(
        finished_at(plan, root),
        any(
            (directory / name).exists()
            for name in ("metrics.jsonl", "checkpoints", "progress.json")
        ),
        mtime(directory / "cancelled"),
        code,
        None if code is None else mtime(directory / "exit_code"),
        read_text(directory / "refused").strip() or None,
        job_starts(directory),
        progress,
        (progress.metrics if progress else None) or last_metrics(directory / "metrics.jsonl"),
        planned_steps(directory) if progress is None else None,
        log,
        mtime(log) if log else None,
        lock_owner(directory),
        str(record.get("error") or "an error, see its output") if failed else None,
        record.get("ended") if failed else None,
    )


def started_since(planned: Sequence[StagePlan], since: float) -> bool:
    """Whether `mezzotint run` has started one of these stages since a time."""
    times = [mtime(plan.directory / "logs" / "stage.log") for plan in planned]
    return any(time is not None and time > since - 1.0 for time in times)


def newest_log(directory: Path) -> Path | None:
    """The last written log of a stage: of its job, or of its process on this machine."""
    logs = [directory / "logs" / name for name in ("job.log", "stage.log")]
    times = {log: time for log in logs if (time := mtime(log)) is not None}
    return max(times, key=lambda log: times[log]) if times else None


def exit_code(directory: Path) -> int | None:
    """The exit code that a stage's script or runner wrote."""
    text = read_text(directory / "exit_code")
    return int(text) if re.fullmatch(r"-?\d+\s*", text) else None


def job_starts(directory: Path) -> tuple[JobStart, ...]:
    """The starts of a stage's jobs."""
    try:
        return tuple(records.read_job_starts(directory))
    except (OSError, ValueError):
        return ()


def last_metrics(path: Path) -> dict[str, float]:
    """The metrics of the last complete line of `metrics.jsonl`."""
    for line in reversed(read_tail(path).splitlines()):
        try:
            return finite(json.loads(line)["metrics"])
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return {}


def planned_steps(directory: Path) -> int | None:
    """The steps of a stage's recipe."""
    steps = read_yaml(directory / "recipe.yaml").get("steps")
    return steps if isinstance(steps, int) else None


def read_tail(path: Path) -> str:
    """The end of a text file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def read_text(path: Path) -> str:
    """A text file; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if it cannot be read."""
    try:
        tree = json.loads(read_text(path) or "{}")
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; empty if it cannot be read."""
    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError:
        return {}
    return tree if isinstance(tree, dict) else {}


def mtime(path: Path) -> float | None:
    """Modification time of a file in seconds since 1970; None if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
