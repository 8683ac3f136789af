"""What a manifest that is there already knows of its set, also one that is damaged."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import ValidationError

from data_pipeline.manifest import (
    MANIFEST_NAME,
    Attribute,
    Manifest,
    Part,
    SetRecord,
    ShardColumns,
    SplitCounts,
)
from data_pipeline.sets.contents import Split
from data_pipeline.sets.shard_index import ShardIndex
from data_pipeline.sets.stored_set import (
    ShardIndexes,
    StoredSet,
    contents_of,
    parsed,
    stored_set,
)
from mezzotint.common import storage
from mezzotint.common.errors import UserError, first_error

OLD_NAME = f"{MANIFEST_NAME}.old"
"""Copy of a manifest that could not be read."""

_NOTHING: Mapping[str, Any] = {
    "name": "images",
    "licence": "unknown",
    "fields": {},
    "provenance": {},
}


class KnownSample(NamedTuple):
    """What is known of a sample, which its tar does not say."""

    attributes: Mapping[str, Attribute]
    parts: Mapping[str, Part]
    """The part of each split that it is in."""


@dataclass(frozen=True)
class KnownSet:
    """What is known of a set; picklable."""

    stored: StoredSet | None = None
    """None where there is no valid manifest."""
    record: SetRecord = field(default_factory=lambda: SetRecord.model_validate(_NOTHING))
    splits: Mapping[str, str] = field(default_factory=dict)
    """Descriptions."""
    notes: tuple[str, ...] = ()
    """What to say of it."""
    salvaged: Mapping[str, Mapping[str, Part]] = field(default_factory=dict)
    """Of every split of an invalid manifest, the part of its keys."""

    def index(self, name: str, digest: str) -> tuple[ShardIndex | None, bool]:
        """The index of the shard with this name, or else this digest, and whether it is unchanged.

        Raises:
            UserError: It is damaged.
        """
        if self.stored is None:
            return None, False
        number = self._numbers.get(name, self._numbers.get(digest))
        if number is None:
            return None, False
        unchanged = self.stored.manifest.shard_columns.sha256[number] == digest
        return self.stored.indexes.of(number), unchanged

    def sample(self, key: str) -> KnownSample | None:
        """A sample of any shard, by its key alone."""
        if self.stored is None:
            parts = {name: part[key] for name, part in self.salvaged.items() if key in part}
            return KnownSample({}, parts) if parts else None
        if key not in self._places:
            return None
        shard, row = self._places[key]
        return known_sample(self.stored.indexes.of(shard), row)

    def keys_of(self, names: Iterable[str]) -> set[str]:
        """The keys of the shards with these names, as far as their indexes are valid."""
        found: set[str] = set()
        for name in names:
            with suppress(UserError):
                index, _ = self.index(name, "")
                found |= set(index.keys if index is not None else ())
        return found

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Shards by name, and by digest."""
        if self.stored is None:
            return {}
        columns = self.stored.manifest.shard_columns
        by_digest = {digest: number for number, digest in enumerate(columns.sha256)}
        return {**by_digest, **{name: number for number, name in enumerate(columns.name)}}

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """The shard and row of every key, which only tars that were packed again need."""
        found: dict[str, tuple[int, int]] = {}
        for shard in range(0 if self.stored is None else len(self.stored.indexes)):
            with suppress(UserError):
                assert self.stored is not None, "else there is no shard"
                keys = self.stored.indexes.of(shard).keys
                found |= {key: (shard, row) for row, key in enumerate(keys)}
        return found


def known_sample(index: ShardIndex, row: int) -> KnownSample:
    """What is known of a sample of a shard."""
    parts = {name: index.part(name, row) for name in index.splits}
    return KnownSample(
        index.sample(row).attributes,
        {name: part for name, part in parts.items() if part is not None},
    )


def known_set(url: str, copies: str) -> KnownSet:
    """What is known of the set at `url`.

    A manifest that is not valid is copied to the directory `copies`, and what is valid of it is
    known.
    """
    path = storage.join(url, MANIFEST_NAME)
    if not storage.exists(path):
        return KnownSet()
    content = storage.read_bytes(path)
    try:
        found = parsed(content)
    except ValidationError as error:
        return _salvaged_set(url, copies, content, error)
    stored = stored_set(url, found)
    splits = {name: split.description for name, split in stored.manifest.splits.items()}
    return KnownSet(stored, SetRecord.model_validate(stored.manifest.record_fields()), splits)


def _salvaged_set(url: str, copies: str, content: bytes, error: ValidationError) -> KnownSet:
    copy = storage.join(copies, OLD_NAME)
    storage.write_bytes(copy, content)
    try:
        tree = json.loads(content)
    except ValueError:
        tree = None
    tree = tree if isinstance(tree, dict) else {}
    record = _valid_fields(tree)
    splits = _splits(url, tree)
    kept = ", ".join(sorted(record) + ["splits"] * bool(splits)) or "nothing"
    note = (
        f"the manifest before was not valid ({first_error(error)[:200]}); a copy is {copy}; "
        f"kept of it: {kept}"
    )
    return KnownSet(
        record=SetRecord.model_validate({**_NOTHING, **record}),
        splits={name: split.description for name, split in splits.items()},
        notes=(note,),
        salvaged={name: split.parts() for name, split in splits.items()},
    )


def _valid_fields(tree: Mapping[str, object]) -> dict[str, Any]:
    """The valid fields of a set's record."""
    found: dict[str, Any] = {}
    for name in SetRecord.model_fields:
        if name in tree:
            with suppress(ValidationError):
                valid = SetRecord.model_validate({**_NOTHING, name: tree[name]})
                found[name] = getattr(valid, name)
    return found


def _splits(url: str, tree: Mapping[str, Any]) -> dict[str, Split]:
    """The valid splits of an invalid manifest; of format 2, from the indexes that are valid."""
    splits = tree.get("splits")
    if not isinstance(splits, dict):
        return {}
    if "shard_columns" in tree:
        return _splits_of_indexes(url, tree, splits)
    found = {}
    for name, value in splits.items():
        with suppress(ValidationError):
            split = Split.model_validate(value)
            if not set(split.train) & set(split.test):
                found[str(name)] = split
    return found


def _splits_of_indexes(
    url: str, tree: Mapping[str, Any], splits: Mapping[str, Any]
) -> dict[str, Split]:
    try:
        counts = {name: SplitCounts.model_validate(one) for name, one in splits.items()}
        columns = ShardColumns.model_validate(tree["shard_columns"])
    except ValidationError:
        return {}
    record = SetRecord.model_validate(_NOTHING).record_fields()
    manifest = Manifest.model_construct(**record, members={}, splits=counts, shard_columns=columns)
    return contents_of(StoredSet(url, manifest, ShardIndexes(url, manifest.shards)), []).splits
