"""Random access to the members of a set's shards.

Their sizes are checked here, before anything is read; their SHA-256 when a shard is fetched
(`cache.py`) and by `mezzotint data verify` (`verify.py`).
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence

from data_pipeline.cache import ShardCache
from data_pipeline.manifest import Manifest, ShardEntry
from mezzotint.common import storage
from mezzotint.common.errors import UserError

_OPEN_FILES = 128


def check_sizes(url: str, manifest: Manifest) -> None:
    """Compare the stored size of every shard with the manifest, without reading any.

    Raises:
        UserError: A shard is missing or has another size.
    """
    present = storage.sizes(url, [shard.name for shard in manifest.shards])
    for shard in manifest.shards:
        path = storage.join(url, shard.name)
        if shard.name not in present:
            raise UserError(
                f"{path}: this shard is in the manifest but not in the directory; copy it here "
                f"again, or index the set again with `mezzotint data index {url}`"
            )
        if present[shard.name] != shard.bytes:
            raise UserError(
                f"{path}: does not match its manifest ({present[shard.name]:,} bytes instead of "
                f"{shard.bytes:,}); copy it here again, or index the set again with `mezzotint "
                f"data index {url}`"
            )


class ShardReader:
    """Reads members by offset: uncompressed local shards in place, others through the cache.

    Thread-safe and picklable; a copy in another process opens files of its own.
    """

    def __init__(self, url: str, shards: Sequence[ShardEntry], cache: ShardCache) -> None:
        self.url = url
        self.shards = tuple(shards)
        self.cache = cache
        self._files: OrderedDict[int, int] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url, "shards": self.shards, "cache": self.cache}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._files = OrderedDict()
        self._lock = threading.Lock()

    def in_place(self, shard: int) -> bool:
        return storage.is_local(self.url) and self.shards[shard].expanded_bytes is None

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of the uncompressed tar of a shard.

        Raises:
            UserError: The shard cannot be fetched, or is shorter than in its manifest.
        """
        with self._lock:
            content = os.pread(self._open(shard), size, offset)
        if len(content) != size:
            raise UserError(
                f"{storage.join(self.url, self.shards[shard].name)}: ends before byte "
                f"{offset + size:,}, so it does not match its manifest; run `mezzotint data "
                f"verify {self.url}`"
            )
        return content

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch the shards that are not read in place, in the background."""
        wanted = [self.shards[shard] for shard in shards if not self.in_place(shard)]
        self.cache.prefetch(self.url, wanted)

    def close(self) -> None:
        with self._lock:
            while self._files:
                os.close(self._files.popitem()[1])

    def _open(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        while len(self._files) >= _OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        self._files[shard] = self._open_file(shard)
        return self._files[shard]

    def _open_file(self, shard: int) -> int:
        if self.in_place(shard):
            path = storage.local_path(self.url) / self.shards[shard].name
            try:
                return os.open(path, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{path}: shard cannot be opened ({error.strerror})") from error
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
