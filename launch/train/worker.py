"""One rank of a run: `python -P -m launch.train.worker RUN_DIRECTORY`."""

import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from launch.errors import run_command
from launch.progress import Reporter
from launch.train.local import LOCKED, hold
from mezzotint.common.errors import UserError
from mezzotint.common.locks import TRAINING
from trainer.signals import PREEMPTED
from trainer.tracking.environment import tracking_from_environment


def train_rank(path: Path) -> int:
    """Train in a claimed run directory; returns the exit code."""
    from trainer.distributed import world_from_environment
    from trainer.recipe import load
    from trainer.run import RunDirectory
    from trainer.session import run

    directory = RunDirectory(path)
    if not directory.recipe.is_file():
        raise UserError(f"{path}: holds no recipe.yaml; start it with `mezzotint train`")
    if directory.finished():  # a requeued job
        return 0
    world = world_from_environment()
    main = world.is_main
    logging.basicConfig(level=logging.INFO if main else logging.WARNING, format="%(message)s")
    with ExitStack() as stack:
        if main and LOCKED not in os.environ:
            hold(stack, directory, TRAINING)
        reporter = stack.enter_context(
            Reporter(path if main else path / "logs" / f"rank-{world.rank}", shows=main)
        )
        state = run(load(directory.recipe), directory, tracking_from_environment(), reporter)
    return PREEMPTED if state.preempted and main else 0  # the main process returns it for all


def main() -> None:
    """Entry point."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -P -m launch.train.worker RUN_DIRECTORY")
    sys.exit(train_rank(Path(sys.argv[1])))


if __name__ == "__main__":
    run_command(main)
