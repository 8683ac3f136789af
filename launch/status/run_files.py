"""What the directory of a stage says of it, read so that a torn file counts as a missing one."""

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
from mezzotint.common.locks import LockOwner, lock_owner

TAIL_BYTES = 65536
_REFERENCE = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True)
class StagePlan:
    """A stage as its run intends it."""

    name: str
    kind: str
    directory: Path
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageFiles:
    """What lies in a stage's directory. Times are seconds since 1970."""

    finished: float | None = None
    begun: bool = False
    cancelled: float | None = None
    """When `mezzotint cancel` left its mark."""
    exit_code: int | None = None
    exited: float | None = None
    refused: str | None = None
    """What its input was refused for."""
    attempts: tuple[JobStart, ...] = ()
    standing: ProgressState | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    log: Path | None = None
    logged: float | None = None
    holder: LockOwner | None = None


def planned_stages(root: Path) -> tuple[StagePlan, ...]:
    """The stages of a run directory; none where its pipeline cannot be read.

    The pipeline is not validated, nor are its recipes read: whoever looks may stand elsewhere.
    """
    if not (root / "pipeline.yaml").is_file():
        return (StagePlan(TRAIN, "train", root),)
    stages = read_yaml(root / "pipeline.yaml").get("stages")
    if not isinstance(stages, Mapping):
        return ()
    found = []
    for name, stage in stages.items():
        settings = stage if isinstance(stage, Mapping) else {}
        needed = {
            *_REFERENCE.findall(json.dumps(settings, default=str)),
            *explicit_dependencies(settings),
        }
        needs = tuple(each for each in stages if each in needed)
        found.append(StagePlan(str(name), str(settings.get("kind", "")), root / str(name), needs))
    return tuple(found)


def explicit_dependencies(settings: Mapping[str, Any]) -> list[Any]:
    """Stages that a stage waits for without reading them."""
    named = settings.get("after")
    return list(named) if isinstance(named, list | tuple) else []


def read_submission_safely(root: Path) -> tuple[Submission | None, str | None]:
    """The last submission of a run; what is wrong with its file, where it cannot be read."""
    try:
        return records.read_submission(root), None
    except UserError as error:
        return None, str(error)
    except (OSError, AttributeError) as error:
        return None, f"{root / 'submission.json'}: cannot be read ({type(error).__name__})"


def is_finished(plan: StagePlan, root: Path) -> bool:
    """Whether a stage is recorded as finished."""
    return finished_at(plan, root) is not None


def finished_at(plan: StagePlan, root: Path) -> float | None:
    """When a stage was recorded as finished: in the ledger, or by a lone recipe's summary."""
    path = plan.directory / ("summary.json" if plan.directory == root else "stage.json")
    return mtime(path) if read_json(path) else None


def read_stage_files(plan: StagePlan, root: Path) -> StageFiles:
    """Read a stage's directory."""
    place = stage_directory(root, plan.name)
    log = newest_log(place)
    standing, code = read_progress(place), exit_code(place)
    return StageFiles(
        finished_at(plan, root),
        any((place / name).exists() for name in ("metrics.jsonl", "checkpoints", "progress.json")),
        mtime(place / "cancelled"),
        code,
        None if code is None else mtime(place / "exit_code"),
        read_text(place / "refused").strip() or None,
        job_starts(place),
        standing,
        (standing.metrics if standing else None) or last_metrics(place / "metrics.jsonl"),
        planned_steps(place) if standing is None else None,
        log,
        mtime(log) if log else None,
        lock_owner(place),
    )


def started_since(planned: Sequence[StagePlan], moment: float) -> bool:
    """Whether `mezzotint run` has started a stage of these since then."""
    times = [mtime(plan.directory / "logs" / "stage.log") for plan in planned]
    return any(time is not None and time > moment - 1.0 for time in times)


def newest_log(place: Path) -> Path | None:
    """The log of a stage's job, or of its process on this machine: the one written last."""
    logs = [place / "logs" / name for name in ("job.log", "stage.log")]
    times = {log: time for log in logs if (time := mtime(log)) is not None}
    return max(times, key=lambda log: times[log]) if times else None


def exit_code(place: Path) -> int | None:
    """What a stage's script ended with, where it came to its own end."""
    text = read_text(place / "exit_code")
    return int(text) if re.fullmatch(r"-?\d+\s*", text) else None


def job_starts(place: Path) -> tuple[JobStart, ...]:
    """The starts of a stage's jobs."""
    try:
        return tuple(records.read_job_starts(place))
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def last_metrics(path: Path) -> dict[str, float]:
    """The metrics of the last whole line of a record."""
    for line in reversed(read_tail(path).splitlines()):
        try:
            metrics = json.loads(line)["metrics"]
            return {name: float(value) for name, value in metrics.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return {}


def planned_steps(place: Path) -> int | None:
    """How many steps a stage's recipe has."""
    steps = read_yaml(place / "recipe.yaml").get("steps")
    return steps if isinstance(steps, int) else None


def read_tail(path: Path) -> str:
    """The end of a text file; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def read_text(path: Path) -> str:
    """A small text file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where it cannot be read."""
    try:
        tree = json.loads(read_text(path) or "{}")
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; empty where it cannot be read."""
    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError:
        return {}
    return tree if isinstance(tree, dict) else {}


def mtime(path: Path) -> float | None:
    """When a file was last written; None where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None
