"""One of several processes of a run: `python -P -m launch.train.worker RUN_DIRECTORY`."""

import logging
import sys
from pathlib import Path

from launch.errors import run_command
from launch.progress import Reporter
from launch.train.local import check_recipe_directory, link_from_environment
from mezzotint.common.errors import UserError
from trainer.signals import PREEMPTED


def work(path: Path) -> int:
    """Train in a claimed run directory; returns the exit code."""
    from trainer.distributed import place
    from trainer.recipe import load
    from trainer.session import run

    directory = check_recipe_directory(path)
    if directory.finished():  # a job that SLURM starts once more
        return 0
    main = place().is_main
    logging.basicConfig(level=logging.INFO if main else logging.WARNING, format="%(message)s")
    with Reporter(path) if main else silent(path / "logs" / f"rank-{place().rank}") as reporter:
        state = run(load(directory.recipe), directory, link_from_environment(), reporter)
    return PREEMPTED if state.preempted and main else 0  # one process speaks for all


def silent(directory: Path) -> Reporter:
    """Progress of a process that nobody watches."""
    return Reporter(directory, shows=False, every=float("inf"))


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -P -m launch.train.worker RUN_DIRECTORY")
    sys.exit(work(Path(sys.argv[1])))


if __name__ == "__main__":
    run_command(main)
