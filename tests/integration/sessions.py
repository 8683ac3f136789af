"""Runs training sessions given as JSON in one process: `python sessions.py FILE`.

One process trains many recipes, so that a test of many settings imports the libraries once.
"""

import json
import sys
from pathlib import Path

from launch.errors import run_command
from trainer.distributed import world_from_environment
from trainer.recipe import load
from trainer.run import RunDirectory
from trainer.session import run


def main() -> None:
    for entry in json.loads(Path(sys.argv[1]).read_text()):
        directory = RunDirectory(Path(entry["directory"]))
        recipe = load(entry["recipe"], entry["overrides"])
        if world_from_environment().is_main:
            directory.claim(recipe)
        run(recipe, directory, None, lambda step, steps, metrics: None)


if __name__ == "__main__":
    run_command(main)
