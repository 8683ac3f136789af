"""The stages of an evaluation: their progress and the seconds they take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the items done and their total."""
StageProgress = Callable[[int, int], None]


class Stages:
    """Reports progress by stage and measures each one."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[StageProgress]:
        """Time the body, and give it a callback for the items done and their total."""
        start = time.monotonic()

        def report(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(name, done, total)

        yield report
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
