"""A node's copies of remote (or compressed) shards, shared by all of its processes.

A shard is fetched whole, once per node: one GET moves thousands of samples per second where one
range request per sample moves hundreds. Files are named by their digest, so equal shards of
different sets share a copy and no name from outside becomes a path.
"""

import gzip
import hashlib
import logging
import os
import queue
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.manifest import ShardEntry
from data_pipeline.space import check_space

_log = logging.getLogger(__name__)

_ATTEMPTS = 4
_CHUNK = 1 << 20


def default_cache_directory() -> Path:
    """``$MEZZOTINT_CACHE``, else ``~/.cache/mezzotint/shards``."""
    named = os.environ.get("MEZZOTINT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "mezzotint" / "shards"


def cache_limit() -> int | None:
    """``$MEZZOTINT_CACHE_BYTES``, the size the cache is held to; None: whatever the disk holds.

    Raises:
        DataError: It is set, but not to a positive number of bytes.
    """
    text = os.environ.get("MEZZOTINT_CACHE_BYTES")
    if text is None:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise DataError(f"MEZZOTINT_CACHE_BYTES={text}: give a positive whole number of bytes")
    return int(text)


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardCache:
    """Fetches shards into ``directory`` and forgets the least recently used beyond ``limit``.

    Safe to share between processes. Picklable; every process has its own prefetch thread.

    Args:
        directory: On a disk of this node.
        limit: Bytes to hold at most.
        deadline: Seconds one transfer may take. Object stores that stall mid-body hang far
            beyond their client's configured timeouts.
        retry_wait: Seconds before the second attempt, doubled before every later one.
    """

    def __init__(
        self,
        directory: Path,
        limit: int | None = None,
        *,
        deadline: float = 900.0,
        retry_wait: float = 1.0,
    ) -> None:
        self.directory = directory
        self.limit = limit
        self.deadline = deadline
        self.retry_wait = retry_wait
        self._ahead: _Ahead | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ahead": None}

    def fetch(self, url: str, shard: ShardEntry) -> Path:
        """The local plain tar of ``shard`` of the set at ``url``, fetched if it is not here.

        Raises:
            DataError: The shard is missing, unreadable, not what its manifest says, or does
                not fit.
        """
        target = self.directory / shard.sha256[:2] / f"{shard.sha256}.tar"
        if _is_whole(target, shard):
            os.utime(target)
            return target
        self._make_directory(target.parent)
        with FileLock(target.with_suffix(".lock")):
            if not _is_whole(target, shard):
                self._make_room(shard)
                self._fetch(storage.join(url, shard.name), shard, target)
        return target

    def prefetch(self, url: str, shards: Iterable[ShardEntry]) -> None:
        """Fetch ``shards`` in the background, in this order.

        A failure is logged, not raised: whoever needs the shard fetches it again and hears.
        """
        if self._ahead is None or self._ahead.process != os.getpid():
            self._ahead = _Ahead(self.fetch)
        for shard in shards:
            self._ahead.ask(url, shard)

    def _make_directory(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{directory}: the shard cache cannot be made ({error}); set MEZZOTINT_CACHE or "
                "data.cache to a writable directory"
            ) from error

    def _make_room(self, shard: ShardEntry) -> None:
        """Forget old copies until ``shard`` fits below the limit, then ask the disk."""
        needed = shard.tar_bytes if shard.expanded_bytes is None else shard.tar_bytes + shard.bytes
        if self.limit is not None:
            if needed > self.limit:
                raise DataError(
                    f"MEZZOTINT_CACHE_BYTES={self.limit}: shard '{shard.name}' alone needs "
                    f"{needed} bytes; raise it"
                )
            with FileLock(self.directory / "evict.lock"):
                self._evict(self.limit - needed)
        check_space(self.directory, needed, purpose=f"the cached shard '{shard.name}'")

    def _evict(self, keep: int) -> None:
        """Delete the least recently used copies until at most ``keep`` bytes remain."""
        copies = []
        for path in self.directory.glob("*/*.tar*"):
            try:
                status = path.stat()
            except FileNotFoundError:  # renamed by the process that was fetching it
                continue
            copies.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies, key=lambda copy: copy[0]):
            if total <= keep:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _fetch(self, url: str, shard: ShardEntry, target: Path) -> None:
        """Transfer, check, expand and rename, trying again after faults that may pass."""
        partial = target.with_suffix(f".tar.{os.getpid()}")
        wait = self.retry_wait
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._transfer(url, partial)
                _check(url, shard, partial)
                if shard.expanded_bytes is not None:
                    _expand(url, shard, partial)
                partial.replace(target)
                return
            except (FileNotFoundError, PermissionError) as error:
                raise DataError(f"{url}: cannot be fetched ({error})") from error
            except (OSError, _Mismatch) as error:
                if attempt == _ATTEMPTS or (isinstance(error, _Mismatch) and attempt == 2):
                    raise DataError(f"{url}: {error}") from error
                _log.warning("%s: %s; trying again in %.0f s", url, error, wait)
                time.sleep(wait)
                wait *= 2
            finally:
                partial.unlink(missing_ok=True)

    def _transfer(self, url: str, partial: Path) -> None:
        system, path = storage.filesystem(url)
        fault: list[BaseException] = []

        def get() -> None:
            try:
                system.get_file(path, str(partial))
            except BaseException as error:  # noqa: BLE001 (raised again in the waiting thread)
                fault.append(error)

        thread = threading.Thread(target=get, daemon=True, name="shard-transfer")
        thread.start()
        thread.join(self.deadline)
        if thread.is_alive():
            raise TimeoutError(f"the transfer took longer than {self.deadline:.0f} s")
        if fault:
            raise fault[0]


class _Mismatch(Exception):
    """The bytes that arrived are not those the manifest promises."""


class _Ahead:
    """One background thread that fetches what will be needed next."""

    def __init__(self, fetch: Callable[[str, ShardEntry], Path]) -> None:
        self.process = os.getpid()
        self._fetch = fetch
        self._asked: queue.SimpleQueue[tuple[str, ShardEntry]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="shard-prefetch").start()

    def ask(self, url: str, shard: ShardEntry) -> None:
        self._asked.put((url, shard))

    def _run(self) -> None:
        while True:
            url, shard = self._asked.get()
            try:
                self._fetch(url, shard)
            except DataError as error:
                _log.warning("prefetch: %s", error)


def _is_whole(path: Path, shard: ShardEntry) -> bool:
    """Whether the finished copy is there; its digest was checked before it got its name."""
    try:
        return path.stat().st_size == shard.tar_bytes
    except (FileNotFoundError, NotADirectoryError):
        return False


def _check(url: str, shard: ShardEntry, path: Path) -> None:
    size, digest = path.stat().st_size, file_digest(path)
    if size != shard.bytes or digest != shard.sha256:
        raise _Mismatch(
            f"does not match its manifest: {size:,} bytes, sha256 {digest[:12]}, where "
            f"{shard.bytes:,} bytes, sha256 {shard.sha256[:12]} were promised; run `mezzotint "
            f"data verify {url.rsplit('/', 1)[0]}`"
        )


def _expand(url: str, shard: ShardEntry, path: Path) -> None:
    """Replace the compressed file at ``path`` by the plain tar inside it."""
    plain = path.with_name(f"{path.name}.plain")
    try:
        with gzip.open(path) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        if plain.stat().st_size != shard.expanded_bytes:
            raise _Mismatch(f"expands to another size than {shard.expanded_bytes:,} bytes")
        plain.replace(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{url}: is not a gzip file ({error})") from error
    finally:
        plain.unlink(missing_ok=True)
