"""Runs and stages by the names people give them."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from launch.status.run_files import StagePlan, mtime, planned_stages
from mezzotint.common.errors import UserError

RUN_FILES = ("pipeline.yaml", "recipe.yaml", "submission.json")
"""A directory that holds one of these is a run's."""


def is_run_directory(path: Path) -> bool:
    """Whether a directory is that of a run."""
    return any(mtime(path / mark) is not None for mark in RUN_FILES)


def all_runs(runs: Path) -> list[Path]:
    """The run directories under `runs`, the one started last first."""
    if not runs.is_dir():
        return []
    found = [
        path for path in runs.iterdir() if not path.name.startswith(".") and is_run_directory(path)
    ]
    return sorted(found, key=lambda path: (-last_start_time(path), path.name))


def last_start_time(root: Path) -> float:
    """When a run was last started or submitted, in seconds since 1970."""
    return max(mtime(root / name) or 0.0 for name in (*RUN_FILES, "lock"))


def find_run(name: str, runs: Path) -> Path:
    """The directory of a run, given by its name under `runs` or by its path.

    The directory of a stage stands for its pipeline, which knows of the stage's job.

    Raises:
        UserError: there is none; the names that come nearest are given.
    """
    for path in (runs / name, Path(name)):
        if name and is_run_directory(path):
            within = mtime(path.parent / "pipeline.yaml") is not None
            return path.parent if within else path
    known = [path.name for path in all_runs(runs)]
    raise UserError(f"{name}: no such run in {runs}{suggest(Path(name).name, known)}")


def find_stage(name: str, root: Path) -> StagePlan:
    """A stage of a run.

    Raises:
        UserError: there is none of that name.
    """
    planned = planned_stages(root)
    for plan in planned:
        if plan.name == name:
            return plan
    known = [plan.name for plan in planned]
    raise UserError(f"{name}: no such stage in {root}{suggest(name, known)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """What may have been meant."""
    names = list(known)
    if not names:
        return "; there is none yet"
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    more = ", ..." if not near and len(names) > 5 else ""
    return f"; there is {', '.join(near or names[:5])}{more}"
