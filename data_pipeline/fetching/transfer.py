"""One transfer of a shard to a file of this node, with its digest.

The digest is computed while the bytes arrive. A large shard is read in parts, several at a time:
object stores limit the rate of a connection, and the processor's time for a byte is less.
"""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from mezzotint.common import storage
from mezzotint.common.storage_errors import TransientError

PART_BYTES = 8 << 20
RANGED_BYTES = 64 << 20
"""Shards of more bytes are read in parts, where the store has ranges."""
PARALLEL_PARTS = 4


def transfer(
    url: str, size: int, target: Path, *, timeout: float, total: float, ranged: bool
) -> str:
    """Copy the shard at `url`, of `size` bytes, to `target`; returns its SHA-256.

    At least one byte must arrive in `timeout` seconds, or with `ranged`, which is for large shards,
    each part; all of them in `total`. If this raises, the content of `target` is undefined.

    Raises:
        NotFoundError: There is no such file.
        TransientError: It cannot be read; retrying may help.
        UserError: It cannot be read.
        OSError: `target` cannot be written.
    """
    if ranged and size > RANGED_BYTES and storage.has_ranges(url):
        return _in_parts(url, size, target, timeout, total)
    return storage.download(url, target, timeout=timeout, total=total)


def _in_parts(url: str, size: int, target: Path, timeout: float, total: float) -> str:
    digest, end = hashlib.sha256(), time.monotonic() + total
    pending: deque[Future[list[bytes]]] = deque()
    starts = iter(range(0, size, PART_BYTES))
    with target.open("wb") as file:
        while True:
            while len(pending) < PARALLEL_PARTS and (start := next(starts, None)) is not None:
                pending.append(_part(url, start, min(start + PART_BYTES, size), timeout))
            if not pending:
                return digest.hexdigest()
            for piece in _within(end - time.monotonic(), pending.popleft(), url, total):
                file.write(piece)
                digest.update(piece)


def _part(url: str, start: int, end: int, timeout: float) -> "Future[list[bytes]]":
    return _in_thread(lambda: storage.read_range(url, start, end, timeout=timeout))


def _within(seconds: float, part: "Future[list[bytes]]", url: str, total: float) -> list[bytes]:
    try:
        return part.result(max(seconds, 0))
    except TimeoutError as error:
        raise TransientError(
            f"{url}: cannot be read (not complete after {total:,.0f} s); check the URL and the "
            "network"
        ) from error


def _in_thread(call: Callable[[], list[bytes]]) -> "Future[list[bytes]]":
    """The result of a call in a thread that does not keep the process from ending."""
    future: Future[list[bytes]] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 (raised again where the result is read)
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="part").start()
    return future
