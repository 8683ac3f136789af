"""Find runs and stages by name."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from launch.status.run_files import StagePlan, mtime, planned_stages
from mezzotint.common.errors import UserError

RUN_FILES = ("pipeline.yaml", "recipe.yaml", "submission.json")
"""A run directory holds at least one of these."""


def is_run_directory(path: Path) -> bool:
    """Whether a directory is a run directory."""
    return any(mtime(path / name) is not None for name in RUN_FILES)


def all_runs(runs: Path) -> list[Path]:
    """The run directories under `runs`, the last started first."""
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

    For the directory of a stage, that of its pipeline.

    Raises:
        UserError: there is none; similar names are listed.
    """
    for path in (runs / name, Path(name)):
        if path.name in ("", ".."):  # `.` has no name and no parent
            path = path.resolve()
        if name and is_run_directory(path):
            is_stage = mtime(path.parent / "pipeline.yaml") is not None
            return path.parent if is_stage else path
    known = [path.name for path in all_runs(runs)]
    raise UserError(f"{name}: no such run in {runs}{suggest(Path(name).name, known)}")


def find_stage(name: str, root: Path) -> StagePlan:
    """A stage of a run.

    Raises:
        UserError: there is none of that name.
    """
    stages = {stage.name: stage for stage in planned_stages(root)}
    if name not in stages:
        raise UserError(f"{name}: no such stage in {root}{suggest(name, stages)}")
    return stages[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the known names that are similar."""
    names = list(known)
    if not names:
        return "; there is none yet"
    similar = get_close_matches(name, names, n=3, cutoff=0.5)
    more = ", ..." if not similar and len(names) > 5 else ""
    return f"; there is {', '.join(similar or names[:5])}{more}"
