"""Sets that hold further members of the same samples, such as hints beside latents."""

from collections.abc import Sequence
from typing import Self

from data_pipeline.cache import ShardCache
from data_pipeline.config import DataConfig
from data_pipeline.manifest import Manifest, SampleEntry, read_manifest
from data_pipeline.shards import ShardReader, check_sizes
from mezzotint.common.digests import is_digest
from mezzotint.common.errors import UserError


class JoinedSet:
    """The members of chosen samples in another set, found by key."""

    def __init__(
        self, url: str, manifest: Manifest, keys: Sequence[str], cache: ShardCache
    ) -> None:
        located = {entry.key: (shard, entry) for shard, entry in manifest.located_samples()}
        missing = [key for key in keys if key not in located]
        if missing:
            raise UserError(
                f"data.join: {url} has no sample '{missing[0]}' ({len(missing):,} of {len(keys):,} "
                "are missing); derive it from the set of data.url, with all of its samples"
            )
        self.url, self.manifest = url, manifest
        self.reader = ShardReader(url, manifest.shards, cache)
        self._shards = [located[key][0] for key in keys]
        self._entries = [located[key][1] for key in keys]

    @classmethod
    def open(cls, url: str, keys: Sequence[str], cache: ShardCache) -> Self:
        """The samples `keys` of the set at `url`.

        Raises:
            UserError: there is no such set, it is damaged, or it lacks a key.
        """
        manifest = read_manifest(url)
        check_sizes(url, manifest)
        return cls(url, manifest, keys, cache)

    def entry(self, index: int) -> SampleEntry:
        return self._entries[index]

    def shard(self, index: int) -> int:
        """The shard of a sample."""
        return self._shards[index]

    def shards_of(self, indices: Sequence[int]) -> list[int]:
        """The shards that hold these samples."""
        return sorted({self._shards[index] for index in indices})

    def read(self, index: int, extension: str) -> bytes:
        offset, size = self._entries[index].members[extension]
        return self.reader.read(self._shards[index], offset, size)


def check_encoder(config: DataConfig, manifests: Sequence[Manifest], expected: str | None) -> None:
    """Every set that an encoder made must be of the expected one, and one set must be.

    Raises:
        UserError: with both digests.
    """
    if expected is None and config.encoder is not None:
        if not is_digest(config.encoder):
            raise UserError(
                f"data.encoder: '{config.encoder}' is not a digest; pass the digest of that model "
                "directory as expected_encoder"
            )
        expected = config.encoder
    if expected is None:
        return
    found: dict[str, str | None] = {
        url: one.encoder
        for url, one in zip((config.url, *config.join), manifests, strict=True)
        if one.encoder is not None
    }
    for url, encoder in (found or {config.url: None}).items():
        if encoder != expected:
            raise UserError(
                f"{url}: its encoder is {encoder[:12] if encoder else 'none'}, but this run needs "
                f"{expected[:12]}; derive the set again with that model"
            )
