"""What a manifest that is there already knows of its set, also one that is damaged."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from data_pipeline.manifest import MANIFEST_NAME, Manifest, ShardColumns, SplitCounts
from data_pipeline.sets.contents import SetContents, Split
from data_pipeline.sets.stored_set import ShardIndexes, StoredSet, contents_of, stored_format
from mezzotint.common import storage
from mezzotint.common.errors import first_error

OLD_NAME = f"{MANIFEST_NAME}.old"
"""Copy of a manifest that could not be read."""

_NOTHING: Mapping[str, Any] = {
    "name": "images",
    "licence": "unknown",
    "fields": {},
    "provenance": {},
    "splits": {},
}


@dataclass(frozen=True)
class KnownSet:
    """What is known of a set."""

    contents: SetContents | None = None
    """None where there is no manifest, or no valid one."""
    fields: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    """Of `SetContents`, without its shards."""
    notes: tuple[str, ...] = ()
    """What to say of it."""
    is_current: bool = False
    """Whether manifest and indexes are valid, and of this format."""


def known_set(url: str) -> KnownSet:
    """What is known of the set at `url`.

    A manifest that is not valid is copied beside, and what is valid of it is known. Of shards whose
    index is damaged, attributes and parts of splits are not.
    """
    path = storage.join(url, MANIFEST_NAME)
    if not storage.exists(path):
        return KnownSet()
    content = storage.read_bytes(path)
    damaged: list[str] = []
    try:
        if stored_format(content) == 1:
            contents = SetContents.model_validate_json(content)
            contents = contents.model_copy(update={"format_1_fingerprint": contents.fingerprint})
            current = False
        else:
            manifest = Manifest.model_validate_json(content)
            stored = StoredSet(url, manifest, ShardIndexes(url, manifest.shards))
            contents, current = contents_of(stored, damaged), not damaged
    except ValidationError as error:
        return _salvaged_set(url, content, error)
    known = {name: getattr(contents, name) for name in _kept_fields()}
    notes = tuple(f"{one}: attributes and splits of its samples are lost" for one in damaged)
    return KnownSet(contents, known, notes, current)


def _salvaged_set(url: str, content: bytes, error: ValidationError) -> KnownSet:
    copy = storage.join(url, OLD_NAME)
    storage.write_bytes(copy, content)
    known = _salvaged(content) | _splits_of_indexes(url, content)
    kept = ", ".join(sorted(known)) or "nothing"
    note = (
        f"the manifest before was not valid ({first_error(error)[:200]}); a copy is {copy}; "
        f"kept of it: {kept}"
    )
    return KnownSet(fields={**_NOTHING, **known}, notes=(note,))


def _salvaged(content: bytes) -> dict[str, Any]:
    """The valid fields of an invalid manifest."""
    try:
        tree = json.loads(content)
    except ValueError:
        return {}
    known: dict[str, Any] = {}
    for name in _kept_fields() if isinstance(tree, dict) else ():
        if name in tree:
            with suppress(ValidationError):
                known[name] = _validated(name, tree[name])
    return known


def _splits_of_indexes(url: str, content: bytes) -> dict[str, Any]:
    """The splits of an invalid manifest that lists its shards, by key from their indexes."""
    try:
        tree = json.loads(content)
        counts = {name: SplitCounts.model_validate(one) for name, one in tree["splits"].items()}
        columns = ShardColumns.model_validate(tree["shard_columns"])
    except (ValueError, TypeError, AttributeError, KeyError):
        return {}
    manifest = Manifest.model_construct(**_NOTHING, members={}, shard_columns=columns)
    manifest = manifest.model_copy(update={"splits": counts})
    stored = StoredSet(url, manifest, ShardIndexes(url, manifest.shards))
    return {"splits": contents_of(stored, []).splits}


def _kept_fields() -> list[str]:
    return [name for name in SetContents.model_fields if name not in ("format", "shards")]


def _validated(name: str, value: object) -> object:
    """A field of a manifest; splits are checked without the shards that hold their keys."""
    if name != "splits" or not isinstance(value, dict):
        return getattr(SetContents.model_validate({**_NOTHING, "shards": (), name: value}), name)
    splits = {str(key): Split.model_validate(one) for key, one in value.items()}
    return {key: one for key, one in splits.items() if not set(one.train) & set(one.test)}
