"""The main function of programs that answer a list of entries as the ranks of one group."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import distributed, engine
from trainer.distributed import World


def answer_entries(answer: Callable[[Any, Path, World], object]) -> None:
    """Answer each entry of the JSON list that the command names.

    `answer` gets the entry, a path of its own beside the file, and the world. The answers go to
    FILE with the rank as suffix.
    """
    file = Path(sys.argv[1])
    world = distributed.world_from_environment()
    engine.start(world)
    warnings.simplefilter("ignore")
    answers = [
        answer(entry, file.with_suffix(f".{index}"), world)
        for index, entry in enumerate(json.loads(file.read_text()))
    ]
    file.with_suffix(f".rank{world.rank}.json").write_text(json.dumps(answers))
    distributed.leave()
