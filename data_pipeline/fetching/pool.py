"""Background threads of a process."""

import logging
import os
import queue
import threading
from collections.abc import Callable

from mezzotint.common.errors import UserError

_log = logging.getLogger(__name__)


class BackgroundPool:
    """At most `threads` threads that begin jobs in the order in which they were added.

    They are of the process that adds the first job; a copy in a forked process starts its own. They
    do not keep a process from ending. A job's UserError is logged as a warning.
    """

    def __init__(self, threads: int) -> None:
        self._limit = threads
        self._process: int | None = None
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads = 0
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._limit,)

    def add(self, job: Callable[[], None]) -> None:
        if self._process != os.getpid():  # also in a fork, whose lock another thread may have held
            self._process, self._threads = os.getpid(), 0
            self._queue, self._lock = queue.SimpleQueue(), threading.Lock()
        self._queue.put(job)
        with self._lock:
            if self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._run, daemon=True, name="shards").start()

    def _run(self) -> None:
        jobs = self._queue
        while True:
            job = jobs.get()
            try:
                job()
            except UserError as error:
                _log.warning("prefetch: %s", error)
