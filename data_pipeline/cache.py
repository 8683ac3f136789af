"""A node's copies of remote (or compressed) shards, shared by all of its processes.

A shard is fetched whole, once per node: one GET moves thousands of samples per second where one
range request per sample moves hundreds. Files are named by their digest, so equal shards of
different sets share a copy and no name from outside becomes a path.
"""

import gzip
import logging
import os
import queue
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from data_pipeline.manifest import ShardEntry
from mezzotint.common import storage
from mezzotint.common.digests import sha256_file
from mezzotint.common.disk_space import check_space
from mezzotint.common.errors import UserError
from mezzotint.common.locks import file_lock
from mezzotint.common.storage_errors import NotFoundError, TransientError

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
        UserError: It is set, but not to a positive number of bytes.
    """
    text = os.environ.get("MEZZOTINT_CACHE_BYTES")
    if text is None:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise UserError(f"MEZZOTINT_CACHE_BYTES={text}: give a positive whole number of bytes")
    return int(text)


class ShardCache:
    """Fetches shards into ``directory`` and forgets the least recently used beyond ``limit``.

    Safe to share between processes. Picklable; every process has its own prefetch thread.

    A shard is fetched under its lock into a file of another name, which is renamed once it is
    checked: whoever is killed leaves no torn copy, and whoever has the lock next knows that what
    lies beside it is left over.

    Args:
        directory: On a disk of this node.
        limit: Bytes of finished copies to keep at most.
        timeout: Seconds in which at least one byte of a transfer must arrive.
        retry_wait: Seconds before the second attempt, doubled before every later one.
    """

    def __init__(
        self,
        directory: Path,
        limit: int | None = None,
        *,
        timeout: float = storage.REQUEST_TIMEOUT,
        retry_wait: float = 1.0,
    ) -> None:
        self.directory = directory
        self.limit = limit
        self.timeout = timeout
        self.retry_wait = retry_wait
        self._ahead: _Prefetcher | None = None
        self._tidy = False

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ahead": None}

    def fetch(self, url: str, shard: ShardEntry) -> Path:
        """The local plain tar of ``shard`` of the set at ``url``, fetched if it is not here.

        Raises:
            UserError: The shard is missing, unreadable, not what its manifest says, or does
                not fit.
        """
        target = self._target(shard)
        if not self._touch(target, shard):
            self._make_directory(target.parent)
            self._clean()
            with file_lock(_lock(target)):
                if not self._touch(target, shard):
                    self._make_room(shard)
                    self._fetch(storage.join(url, shard.name), shard, target)
        return target

    def prefetch(self, url: str, shards: Iterable[ShardEntry]) -> None:
        """Fetch ``shards`` in the background, in this order, except those being fetched already.

        A failure is logged, not raised: whoever needs the shard fetches it again and hears.
        """
        if self._ahead is None or self._ahead.process != os.getpid():
            self._ahead = _Prefetcher(self._fetch_if_free)
        for shard in shards:
            self._ahead.ask(url, shard)

    def _fetch_if_free(self, url: str, shard: ShardEntry) -> None:
        """Fetch, unless another process is at it: the ranks of a node share the work."""
        target = self._target(shard)
        self._make_directory(target.parent)
        try:
            with file_lock(_lock(target), wait=0):
                pass
        except TimeoutError:
            return
        self.fetch(url, shard)

    def _target(self, shard: ShardEntry) -> Path:
        return self.directory / shard.sha256[:2] / f"{shard.sha256}.tar"

    def _touch(self, target: Path, shard: ShardEntry) -> bool:
        """Whether the finished copy is there (its digest was checked before it got its name)."""
        try:
            if target.stat().st_size != shard.tar_bytes:
                return False
            os.utime(target)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _clean(self) -> None:
        """Delete, once, what killed processes have left: files whose lock nobody holds."""
        if self._tidy:
            return
        self._tidy = True
        for path in self.directory.glob("*/*.tar.*"):
            try:
                with file_lock(_lock(path.with_name(f"{path.name[:64]}.tar")), wait=0):
                    path.unlink(missing_ok=True)
            except TimeoutError:
                continue

    def _make_directory(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{directory}: the shard cache cannot be made ({error}); set MEZZOTINT_CACHE or "
                "data.cache to a writable directory"
            ) from error

    def _make_room(self, shard: ShardEntry) -> None:
        """Forget old copies until ``shard`` fits below the limit, then ask the disk."""
        needed = shard.tar_bytes if shard.expanded_bytes is None else shard.tar_bytes + shard.bytes
        if self.limit is not None:
            if needed > self.limit:
                raise UserError(
                    f"MEZZOTINT_CACHE_BYTES={self.limit}: shard '{shard.name}' alone needs "
                    f"{needed} bytes; raise it"
                )
            with file_lock(self.directory / "evict.lock"):
                self._evict(self.limit - needed)
        check_space(self.directory, needed, purpose=f"the cached shard '{shard.name}'")

    def _evict(self, keep: int) -> None:
        """Delete the least recently used copies until at most ``keep`` bytes remain."""
        copies = []
        for path in self.directory.glob("*/*.tar"):
            try:
                status = path.stat()
            except FileNotFoundError:  # evicted by another process
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
        wait = self.retry_wait
        for attempt in range(1, _ATTEMPTS + 1):
            # a name of its own: a transfer that was given up may still write to the one before
            partial = target.with_suffix(f".tar.{os.getpid()}-{attempt}")
            try:
                storage.download(url, partial, timeout=self.timeout)
                _check(url, shard, partial)
                if shard.expanded_bytes is not None:
                    _expand(url, shard, partial)
                partial.replace(target)
                return
            except (TransientError, _Mismatch) as error:
                if attempt == _ATTEMPTS or (isinstance(error, _Mismatch) and attempt == 2):
                    raise UserError(str(error)) from error
                _log.warning("%s; trying again in %.0f s", error, wait)
                time.sleep(wait)
                wait *= 2
            except NotFoundError as error:
                raise UserError(f"{error}; copy it there again") from error
            except OSError as error:
                raise UserError(f"{partial}: cannot be written ({error})") from error
            finally:
                partial.unlink(missing_ok=True)


class _Mismatch(Exception):
    """The bytes that arrived are not those the manifest promises."""


class _Prefetcher:
    """One background thread that fetches what will be needed next."""

    def __init__(self, fetch: Callable[[str, ShardEntry], None]) -> None:
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
            except UserError as error:
                _log.warning("prefetch: %s", error)


def _lock(target: Path) -> Path:
    """The lock of a copy: held by the only process that may be fetching it."""
    return target.with_suffix(".lock")


def _check(url: str, shard: ShardEntry, path: Path) -> None:
    size, digest = path.stat().st_size, sha256_file(path)
    if size != shard.bytes or digest != shard.sha256:
        raise _Mismatch(
            f"{url}: does not match its manifest: {size:,} bytes, sha256 {digest[:12]}, where "
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
            raise _Mismatch(f"{url}: expands to another size than {shard.expanded_bytes:,} bytes")
        plain.replace(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{url}: is not a gzip file ({error})") from error
    finally:
        plain.unlink(missing_ok=True)
