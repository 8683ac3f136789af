"""One transfer of a shard to a file of this node, with its digest.

The digest is computed while the bytes arrive. A large shard is read in parts, several at a time,
because object stores limit the rate of a connection.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import islice
from pathlib import Path

from mezzotint.common import downloads
from mezzotint.common.digests import GrowingDigest

RANGED_BYTES = 64 << 20
"""Shards of more bytes are read in parts, where the store has ranges."""
PART_BYTES = 32 << 20
PARALLEL_PARTS = 4


def transfer(
    url: str, size: int, target: Path, *, timeout: float, total: float, ranged: bool
) -> str:
    """Copy the shard at `url`, of `size` bytes, to `target`; returns its SHA-256.

    At least one byte (with `ranged`, which is for large shards, of each part that is read) must
    arrive in `timeout` seconds, all of them in `total`. If this raises, the content of `target` is
    undefined.

    Raises:
        NotFoundError: There is no such file.
        TransientError: It cannot be read; retrying may help.
        UserError: It cannot be read.
        OSError: `target` cannot be written.
    """
    if ranged and size > RANGED_BYTES and downloads.has_ranges(url):
        return _in_parts(url, size, target, timeout, total)
    return downloads.download(url, target, timeout=timeout, total=total)


def _in_parts(url: str, size: int, target: Path, timeout: float, total: float) -> str:
    digest, deadline = GrowingDigest(target), time.monotonic() + total
    target.touch()

    def fetch(start: int, end: int) -> int:
        with target.open("r+b") as file:
            file.seek(start)
            remaining = max(deadline - time.monotonic(), 0.0)
            downloads.read_range(url, start, end, file.write, timeout=timeout, total=remaining)
        return end

    starts = range(0, size, PART_BYTES)
    waiting = iter([partial(fetch, start, min(start + PART_BYTES, size)) for start in starts])
    running = deque(map(_in_thread, islice(waiting, PARALLEL_PARTS)))
    while running:
        end = running.popleft().result()
        running.extend(map(_in_thread, islice(waiting, 1)))
        digest.advance(end)
    return digest.hexdigest()


def _in_thread(call: Callable[[], int]) -> "Future[int]":
    """The result of a call in a thread that does not keep the process from ending."""
    future: Future[int] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 (raised again where the result is read)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="part").start()
    return future
