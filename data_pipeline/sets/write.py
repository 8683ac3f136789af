"""Writing the indexes of a set's shards, then its manifest."""

from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from data_pipeline.manifest import INDEX_SUFFIX, MANIFEST_NAME, Manifest, ShardEntry
from data_pipeline.sets.contents import SetContents
from data_pipeline.sets.counts import SetCounts
from data_pipeline.sets.shard_index import ShardIndex
from data_pipeline.sets.stored_set import read_contents
from mezzotint.common import storage
from mezzotint.common.digests import sha256


def write_index(url: str, shard: ShardEntry, index: ShardIndex) -> ShardEntry:
    """Write the index of a shard of the set at `url`; its name has its digest.

    Returns:
        The entry of the shard with this index.
    """
    content = index.to_bytes()
    entry = replace(shard, samples=len(index), index=sha256(content))
    storage.write_bytes(storage.join(url, entry.index_name), content)
    return entry


def write_manifest(url: str, manifest: Manifest) -> None:
    """Write the manifest of a set whose indexes are written, whole or not at all."""
    tree = manifest.model_dump_json(exclude_none=True)
    storage.write_bytes(storage.join(url, MANIFEST_NAME), tree.encode() + b"\n")


def write_contents(url: str, contents: SetContents, location: str | None = None) -> Manifest:
    """Write the indexes and the manifest of a set, as `replace_manifest`.

    `location` is the URL of the directory with the shards, where that is another.
    """
    earlier = contents.format_1_fingerprint
    if earlier is not None and earlier != contents.fingerprint:
        contents = contents.model_copy(update={"format_1_fingerprint": None})
    counts = SetCounts(contents.descriptions)
    entries = []
    for shard, index in zip(contents.shards, contents.indexes(), strict=True):
        counts.add(index)
        entries.append(write_index(url, shard.entry(), index))
    manifest = counts.manifest(contents, entries, location)
    replace_manifest(url, manifest)
    return manifest


def write_changed(url: str, manifest: Manifest, changes: Mapping[str, object]) -> Manifest:
    """Write the manifest of the set at `url` with other values of fields of its record."""
    if manifest.shard_columns.index is None:  # of format 1: there are no indexes yet
        return write_contents(url, read_contents(url).model_copy(update=dict(changes)))
    changed = manifest.model_copy(update=dict(changes))
    write_manifest(url, changed)
    return changed


def replace_manifest(url: str, manifest: Manifest) -> None:
    """Write the manifest of a set whose indexes are written, in place of the one that is there.

    The indexes of the one before stay, for processes that have opened the set; older ones are
    deleted.
    """
    kept = _index_names(url) | {shard.index_name for shard in manifest.shards}
    write_manifest(url, manifest)
    for name in storage.sizes(url):
        if name.endswith(INDEX_SUFFIX) and name not in kept:
            storage.remove(storage.join(url, name))


def _index_names(url: str) -> set[str]:
    """The indexes of the manifest that is there, if there is a valid one."""
    path = storage.join(url, MANIFEST_NAME)
    if not storage.exists(path):
        return set()
    try:
        shards = Manifest.model_validate_json(storage.read_bytes(path)).shards
    except ValidationError:
        return set()
    return {shard.index_name for shard in shards}
