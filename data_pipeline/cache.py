"""A node's cache of remote or compressed shards, shared by its processes.

A shard is fetched whole, once per node: one GET request gives thousands of samples per second, one
range request per sample hundreds. Cached files are named by their digest, so that equal shards of
different sets share a file and no name in a manifest becomes a path. A kept copy is verified when
it is first opened, once for all processes that run then, and fetched again if it is not as it was.
"""

import itertools
import logging
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from data_pipeline.digest_records import DigestRecords, FileState
from data_pipeline.fetching.pool import BackgroundPool
from data_pipeline.fetching.retries import time_limit, waits
from data_pipeline.fetching.transfer import transfer
from data_pipeline.manifest import ShardEntry
from data_pipeline.tar import expand_gzip
from mezzotint.common import files, storage
from mezzotint.common.digests import sha256_file
from mezzotint.common.disk_space import check_space
from mezzotint.common.errors import UserError
from mezzotint.common.locks import file_lock
from mezzotint.common.storage_errors import NotFoundError, TransientError

_log = logging.getLogger(__name__)

_TRANSFERS = itertools.count(1)
"""Numbers of this process's transfers, for names of temporary files."""
_FETCHES = 4
_STARTED = time.time()
"""When this process began, about; a child that is forked has its parent's."""


def node_cache(directory: str | None = None) -> "ShardCache":
    """The cache of this node, by default in `$MEZZOTINT_CACHE`, then `~/.cache/mezzotint/shards`.

    Its maximum size is `$MEZZOTINT_CACHE_BYTES`; by default the disk alone limits it.

    Raises:
        UserError: MEZZOTINT_CACHE_BYTES is not a positive number of bytes.
    """
    default = os.environ.get("MEZZOTINT_CACHE") or "~/.cache/mezzotint/shards"
    limit = os.environ.get("MEZZOTINT_CACHE_BYTES")
    if limit is not None and (not limit.isdecimal() or int(limit) == 0):
        raise UserError(f"MEZZOTINT_CACHE_BYTES={limit}: give a positive whole number of bytes")
    path = Path(directory or default).expanduser()
    return ShardCache(path, None if limit is None else int(limit))


def stored_digest(url: str, path: Path) -> str:
    """The SHA-256 of the shard at `url`, of which `path` is the file or a temporary copy.

    It is computed again, and recorded where the file is on this machine.

    Raises:
        OSError: It cannot be read.
    """
    return node_cache().records.recompute(path) if storage.is_local(url) else sha256_file(path)


class ShardCache:
    """Fetches shards into a directory and evicts the least recently used beyond a size limit.

    May be shared by processes and pickled; every process has threads of its own.

    A shard is fetched, under its lock, into a temporary file that is renamed once its digest is
    verified: a killed process leaves no partial shard, and temporary files that the next holder of
    the lock finds can be deleted.

    `directory` is on a disk of this node, `limit` its maximum size in bytes. At least one byte of a
    transfer must arrive in `timeout` seconds; the second attempt comes after about `retry_wait`
    seconds, which are doubled before every later one. All attempts together have `total` seconds,
    by default `time_limit`.
    """

    def __init__(
        self,
        directory: Path,
        limit: int | None = None,
        *,
        timeout: float = storage.REQUEST_TIMEOUT,
        retry_wait: float = 1.0,
        total: float | None = None,
    ) -> None:
        self.directory = directory
        self.limit = limit
        self.timeout = timeout
        self.retry_wait = retry_wait
        self.total = total
        self.records = DigestRecords(directory / "digests")
        """Of cached shards, and of those that are read in place."""
        self._fetches = BackgroundPool(_FETCHES)
        self._digests = BackgroundPool(1)
        self._cleaned = False

    def fetch(self, url: str, shard: ShardEntry) -> Path:
        """The local, uncompressed tar of a shard of the set at `url`; fetched if not cached.

        Raises:
            UserError: The shard is missing, unreadable or not as in its manifest, or does not fit
                on the disk or into the limit.
        """
        target = self._path(shard)
        if not self._use(target, shard):
            self._make_directory(target.parent)
            self._delete_leftovers()
            with file_lock(_lock(target)):
                if not self._use(target, shard):
                    if target.exists():
                        _log.warning(
                            "%s: this copy of '%s' is not as it was verified; it is fetched again",
                            *(target, shard.name),
                        )
                    self._free_space(shard)
                    self._fetch(storage.join(url, shard.name), shard, target)
        return target

    def prefetch(self, url: str, shards: Iterable[ShardEntry]) -> None:
        """Fetch shards in the background, several at a time, in this order.

        A failure is logged only: whoever needs the shard fetches it again and gets the error.
        """
        for shard in shards:
            self._fetches.add(partial(self._fetch_if_unlocked, url, shard))

    def prepare(self, paths: Iterable[Path]) -> None:
        """Compute the digests of local shards in the background, in this order."""
        for path in paths:
            self._digests.add(partial(self._digest_if_unlocked, path))

    def _digest_if_unlocked(self, path: Path) -> None:
        with suppress(OSError, TimeoutError):  # whoever opens the shard gets the error
            self.records.prepare(path)

    def _fetch_if_unlocked(self, url: str, shard: ShardEntry) -> None:
        """Fetch a shard unless another process of the node is fetching it."""
        target = self._path(shard)
        self._make_directory(target.parent)
        try:
            with file_lock(_lock(target), wait=0):
                pass
        except TimeoutError:
            return
        self.fetch(url, shard)

    def _path(self, shard: ShardEntry) -> Path:
        return self.directory / shard.sha256[:2] / f"{shard.sha256}.tar"

    def _use(self, target: Path, shard: ShardEntry) -> bool:
        """Whether the shard is cached and as it was verified; marks it used."""
        try:
            if target.stat().st_size != shard.tar_bytes or not self._is_verified(target, shard):
                return False
        except OSError:  # not there, or another process evicted it
            return False
        with suppress(OSError):  # a cache that this user may only read
            os.utime(_lock(target))
        return True

    def _is_verified(self, target: Path, shard: ShardEntry) -> bool:
        """Whether a copy has its digest, which was computed since this process began."""
        if shard.expanded_bytes is None:
            expected = shard.sha256
        else:
            expected = _plain_digest(target).read_text()
        file = os.open(target, os.O_RDONLY)
        try:
            return self.records.of(file, since=_STARTED) == expected
        finally:
            os.close(file)

    def _record(self, target: Path, shard: ShardEntry) -> None:
        """Record the digest of a copy that was verified just now."""
        digest = shard.sha256
        if shard.expanded_bytes is not None:
            digest = sha256_file(target)
            files.write_text(_plain_digest(target), digest)
        self.records.keep(FileState.of(target.stat()), digest)
        os.utime(_lock(target))

    def _delete_leftovers(self) -> None:
        """Delete, once, temporary files of killed processes: those whose lock is free."""
        if self._cleaned:
            return
        self._cleaned = True
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
                f"{directory}: the shard cache cannot be created ({error}); set MEZZOTINT_CACHE or "
                "data.cache to a writable directory"
            ) from error

    def _free_space(self, shard: ShardEntry) -> None:
        """Evict shards until this one fits into the limit, and check the disk."""
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
        """Delete the least recently used shards until at most `keep` bytes remain."""
        cached = []
        for path in self.directory.glob("*/*.tar"):
            try:
                size, used = path.stat().st_size, path.stat().st_mtime
                if _lock(path).exists():
                    used = _lock(path).stat().st_mtime
            except FileNotFoundError:  # evicted by another process
                continue
            cached.append((used, size, path))
        total = sum(size for _, size, _ in cached)
        for _, size, path in sorted(cached, key=lambda entry: entry[0]):
            if total <= keep:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _fetch(self, url: str, shard: ShardEntry, target: Path) -> None:
        """Download, verify, expand and rename; transient errors are retried."""
        total = time_limit(shard.bytes) if self.total is None else self.total
        end, delays = time.monotonic() + total, waits(self.retry_wait)
        mismatches = attempt = 0
        while True:
            # a new name each time: an abandoned transfer may still write to the previous one
            temporary = target.with_suffix(f".tar.{os.getpid()}-{next(_TRANSFERS)}")
            attempt += 1
            try:
                self._attempt(url, shard, temporary, end, ranged=attempt == 1)
                temporary.replace(target)
                self._record(target, shard)
                return
            except (TransientError, _MismatchError) as error:
                mismatches += isinstance(error, _MismatchError)
                delay = next(delays, None)
                if delay is None or mismatches == 2 or time.monotonic() + delay >= end:
                    raise UserError(str(error)) from error
                _log.warning("%s; trying again in %.1f s", error, delay)
                time.sleep(delay)
            except NotFoundError as error:
                raise UserError(f"{error}; copy it there again") from error
            except OSError as error:
                raise UserError(f"{temporary}: cannot be written ({error})") from error
            finally:
                temporary.unlink(missing_ok=True)

    def _attempt(
        self, url: str, shard: ShardEntry, temporary: Path, end: float, *, ranged: bool
    ) -> None:
        """Download, verify and expand, before the time `end` of the monotonic clock."""
        remaining = end - time.monotonic()
        digest = transfer(
            url, shard.bytes, temporary, timeout=self.timeout, total=remaining, ranged=ranged
        )
        size = temporary.stat().st_size
        if digest != shard.sha256 and size == shard.bytes:
            digest = sha256_file(temporary)  # some clients write parts in another order
        _verify(url, shard, size, digest)
        if shard.expanded_bytes is not None:
            _expand(url, shard, temporary)


class _MismatchError(Exception):
    """A downloaded shard differs from its manifest."""


def _lock(target: Path) -> Path:
    """Locked while the copy is made; its time of modification is that of the last use."""
    return target.with_suffix(".lock")


def _plain_digest(target: Path) -> Path:
    """The file with the digest of an expanded copy, whose name is that of the compressed shard."""
    return target.with_suffix(".sha256")


def _verify(url: str, shard: ShardEntry, size: int, digest: str) -> None:
    if size != shard.bytes or digest != shard.sha256:
        raise _MismatchError(
            f"{url}: does not match its manifest: {size:,} bytes, sha256 {digest[:12]} instead of "
            f"{shard.bytes:,} bytes, sha256 {shard.sha256[:12]}: it changed after it was indexed; "
            "copy it there again or, if the change is wanted, index the set again with `mezzotint "
            f"data index {url.rsplit('/', 1)[0]}`"
        )


def _expand(url: str, shard: ShardEntry, path: Path) -> None:
    """Replace a compressed shard by the tar inside it."""
    plain = path.with_name(f"{path.name}.plain")
    try:
        expand_gzip(path, plain, url)
        if plain.stat().st_size != shard.expanded_bytes:
            raise _MismatchError(f"{url}: expands to a size other than {shard.expanded_bytes:,}")
        plain.replace(path)
    finally:
        plain.unlink(missing_ok=True)
