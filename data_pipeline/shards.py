"""Random access to the members of a set's shards.

Sizes are checked before anything is read. When a process first opens a shard, and again where it
changed since, its SHA-256 is compared with the manifest (computed once per node and state of the
file: `digest_records.py`), and the header of every member that the manifest lists.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from data_pipeline.cache import ShardCache
from data_pipeline.digest_records import FileState
from data_pipeline.manifest import INDEX_SUFFIX, MANIFEST_NAME
from data_pipeline.sets.stored_set import StoredSet
from data_pipeline.tar import misplaced_member
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.text_features import EMPTY_FEATURES

_log = logging.getLogger(__name__)

_OPEN_FILES = 128
RECORDS = ("packed.jsonl", "rejected.jsonl")
"""Which `mezzotint data pack` writes beside the shards."""

TARS = (".tar", ".tar.gz")


def check_sizes(stored: StoredSet) -> None:
    """Compare the stored size of every shard with the manifest, without reading any.

    Tars in the directory that the manifest does not list are warned of.

    Raises:
        UserError: A shard is missing or has another size.
    """
    url, columns = stored.shards_url, stored.manifest.shard_columns
    present = storage.sizes(url, columns.name)
    for name, size in zip(columns.name, columns.bytes, strict=True):
        path = storage.join(url, name)
        if name not in present:
            raise UserError(
                f"{path}: this shard is in the manifest but not in the directory; copy it here "
                f"again, or {index_again(stored.url)}"
            )
        if present[name] != size:
            raise UserError(
                f"{path}: does not match its manifest ({present[name]:,} bytes instead of "
                f"{size:,}); copy it here again, or {index_again(stored.url)}"
            )
    if unlisted := [name for name in unlisted_files(stored, present) if name.endswith(TARS)]:
        _warn_of_unlisted(url, tuple(unlisted))


def unlisted_files(stored: StoredSet, present: Iterable[str]) -> list[str]:
    """Those of the names in a set's directory that are not of the set.

    Hidden ones and indexes, of this manifest or the one before, are left out.
    """
    listed = {MANIFEST_NAME, EMPTY_FEATURES, *RECORDS, *stored.manifest.shard_columns.name}
    found = (name for name in present if name not in listed and not name.startswith("."))
    return sorted(name for name in found if not name.endswith(INDEX_SUFFIX))


@lru_cache(maxsize=64)
def _warn_of_unlisted(url: str, names: tuple[str, ...]) -> None:
    """Once per process and set."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    _log.warning(
        "%s%s: in the directory of the set but not in its manifest, so not read; delete or move "
        "it, or %s",
        *(storage.join(url, names[0]), more, index_again(url)),
    )


def index_again(url: str) -> str:
    """The next step where the shards are right and the manifest is not."""
    return f"index the set again with `mezzotint data index {url}`"


class _OpenShard(NamedTuple):
    """An open file, and the state in which it was checked."""

    file: int
    state: FileState

    def is_unchanged(self, *, in_place: bool) -> bool:
        """Whether its state is the same; a copy in the cache may be evicted while it is open."""
        now = FileState.of(os.fstat(self.file))
        return now == (self.state if in_place else self.state._replace(ctime_ns=now.ctime_ns))


class ShardReader:
    """Reads members by offset: uncompressed local shards in place, others through the cache.

    Thread-safe and picklable; a copy in another process opens files of its own.
    """

    def __init__(self, stored: StoredSet, cache: ShardCache) -> None:
        self.url = stored.shards_url
        self.shards = stored.manifest.shards
        self.cache = cache
        self._stored = stored
        self._files: OrderedDict[int, _OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self._stored, self.cache)

    def in_place(self, shard: int) -> bool:
        return storage.is_local(self.url) and self.shards[shard].expanded_bytes is None

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of the uncompressed tar of a shard.

        Raises:
            UserError: The shard cannot be fetched, or is not as in its manifest.
        """
        with self._lock:
            content = os.pread(self._open(shard), size, offset)
        if len(content) != size:
            raise UserError(
                f"{self._path(shard)}: ends before byte {offset + size:,}, so it does not match "
                f"its manifest; run `mezzotint data verify {self._stored.url}`"
            )
        return content

    def check_local(self, shards: Iterable[int]) -> None:
        """Open those of the shards that are on this machine, with the checks of doing so.

        Raises:
            UserError: One is not as in its manifest.
        """
        for shard in shards if storage.is_local(self.url) else ():
            with self._lock:
                self._open(shard)

    def prefetch(self, shards: Sequence[int]) -> None:
        """In the background, fetch the shards that are not read in place, and check the others."""
        in_place = [shard for shard in shards if self.in_place(shard)]
        fetched = [shard for shard in shards if not self.in_place(shard)]
        if in_place:
            directory = storage.local_path(self.url)
            self.cache.prepare([directory / self.shards[shard].name for shard in in_place])
        if fetched:
            self.cache.prefetch(self.url, [self.shards[shard] for shard in fetched])

    def close(self) -> None:
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1].file)

    def _path(self, shard: int) -> str:
        return storage.join(self.url, self.shards[shard].name)

    def _open(self, shard: int) -> int:
        opened = self._files.get(shard)
        if opened is not None and opened.is_unchanged(in_place=self.in_place(shard)):
            self._files.move_to_end(shard)
            return opened.file
        if opened is not None:
            os.close(self._files.pop(shard).file)
        while len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1].file)
        file = self._open_stored(shard) if self.in_place(shard) else self._open_cached(shard)
        try:
            state = FileState.of(os.fstat(file))
            self._check_headers(shard, file)
        except BaseException:
            os.close(file)
            raise
        self._files[shard] = _OpenShard(file, state)
        return file

    def _check_headers(self, shard: int, file: int) -> None:
        if name := misplaced_member(file, self._stored.indexes.of(shard).samples()):
            raise UserError(
                f"{self._path(shard)}: '{name}' is not where the manifest says; copy shard and "
                f"manifest here again, or {index_again(self._stored.url)}"
            )

    def _open_stored(self, shard: int) -> int:
        """The file of a local shard as it is stored, with the digest of the manifest."""
        path = self._path(shard)
        try:
            file = os.open(storage.local_path(path), os.O_RDONLY)
        except OSError as error:
            raise UserError(f"{path}: shard cannot be opened ({error.strerror})") from error
        try:
            digest = self.cache.records.of(file)
        except OSError as error:
            os.close(file)
            raise UserError(f"{path}: shard cannot be read ({error.strerror})") from error
        if digest != self.shards[shard].sha256:
            os.close(file)
            raise UserError(
                f"{path}: does not match its manifest (its sha256 is {digest[:12]}... instead of "
                f"{self.shards[shard].sha256[:12]}...): it was changed after it was indexed; copy "
                f"it here again or, if the change is wanted, {index_again(self._stored.url)}"
            )
        return file

    def _open_cached(self, shard: int) -> int:
        if storage.is_local(self.url):  # also where a copy from before it was changed is there
            os.close(self._open_stored(shard))
        # another process may evict the shard between fetch and open
        for _ in range(8):
            path = self.cache.fetch(self.url, self.shards[shard])
            try:
                return os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                continue
        raise UserError(
            f"{self.cache.directory}: shards are evicted before they are read; raise "
            "MEZZOTINT_CACHE_BYTES to hold data.shuffle_block shards for every process"
        )
