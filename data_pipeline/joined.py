"""Sets that hold further members of the same samples, such as hints beside latents."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np

from data_pipeline.cache import ShardCache
from data_pipeline.config import DataConfig
from data_pipeline.manifest import Manifest, SampleEntry
from data_pipeline.selection import Selected
from data_pipeline.sets.stored_set import StoredSet, read_set
from data_pipeline.shards import ShardReader, check_sizes
from mezzotint.common.digests import is_digest
from mezzotint.common.errors import UserError


class JoinedSample(NamedTuple):
    """A sample of a joined set."""

    shard: int
    entry: SampleEntry


class JoinedSet:
    """The members of selected samples in another set, found by key.

    Where the set has as many samples, in the same order, as derived sets have, a sample is found by
    its number; else the place of every selected key is held in memory.
    """

    def __init__(
        self, stored: StoredSet, source: StoredSet, selected: Selected, cache: ShardCache
    ) -> None:
        self.url, self.manifest = stored.url, stored.manifest
        self.reader = ShardReader(stored, cache)
        self._indexes = stored.indexes
        self._source = source.indexes
        self._selected = selected
        self._starts = source.manifest.shard_starts
        self._places: dict[str, tuple[int, int]] | None = None
        if not self._same_order(source.manifest):
            self._places = self._by_key()

    @classmethod
    def open(cls, url: str, source: StoredSet, selected: Selected, cache: ShardCache) -> Self:
        """The selected samples of `source` in the set at `url`.

        Raises:
            UserError: there is no such set, it is damaged, or it lacks a key.
        """
        stored = read_set(url)
        check_sizes(stored)
        return cls(stored, source, selected, cache)

    def find(self, shard: int, row: int, key: str) -> JoinedSample:
        """The sample with a key, which is in a row of a shard of the source.

        Raises:
            UserError: Its number has another key.
        """
        if self._places is not None:
            place = self._places[key]
        else:
            place = self.manifest.place_of(int(self._starts[shard]) + row)
        entry = self._indexes.of(place[0]).sample(place[1])
        if entry.key != key:
            raise UserError(
                f"data.join: {self.url} has sample '{entry.key}' where data.url has '{key}'; "
                "derive it again from the set of data.url"
            )
        return JoinedSample(place[0], entry)

    def shards_of(self, shards: Sequence[int]) -> list[int]:
        """The shards that hold the selected samples of these shards of the source."""
        found: set[int] = set()
        for shard in shards:
            rows = self._selected.rows(shard)
            if self._places is None:
                numbers = rows + self._starts[shard]
                found |= set(
                    np.searchsorted(self.manifest.shard_ends, numbers, side="right").tolist()
                )
            else:
                keys = self._source.of(shard).keys
                found |= {self._places[keys[row]][0] for row in rows.tolist()}
        return sorted(found)

    def _same_order(self, source: Manifest) -> bool:
        """Whether samples are found by number: the ends of some of the source's shards agree."""
        if source.sample_count != self.manifest.sample_count:
            return False
        filled = np.flatnonzero(source.shard_sizes)
        some = filled[np.unique(np.linspace(0, len(filled) - 1, min(len(filled), 5)).astype(int))]
        for shard in some.tolist():
            keys = self._source.of(shard).keys
            for row in (0, len(keys) - 1):
                other, place = self.manifest.place_of(int(self._starts[shard]) + row)
                if self._indexes.of(other).keys[place] != keys[row]:
                    return False
        return True

    def _by_key(self) -> dict[str, tuple[int, int]]:
        """The place of every selected key.

        Raises:
            UserError: The set lacks one.
        """
        known = {
            key: (shard, row)
            for shard in range(len(self._indexes))
            for row, key in enumerate(self._indexes.of(shard).keys)
        }
        places, missing = {}, []
        for shard in self._selected.shards:
            keys = self._source.of(shard).keys
            for row in self._selected.rows(shard).tolist():
                key = keys[row]
                if key in known:
                    places[key] = known[key]
                else:
                    missing.append(key)
        if missing:
            raise UserError(
                f"data.join: {self.url} has no sample '{missing[0]}' ({len(missing):,} of "
                f"{len(self._selected):,} are missing); derive it from the set of data.url, with "
                "all of its samples"
            )
        return places


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
