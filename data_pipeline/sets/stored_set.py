"""Reading the manifest of a set and the indexes of its shards.

Sets of format 1, whose manifest lists every sample, are read as if they had indexes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from data_pipeline.manifest import MANIFEST_NAME, Manifest, Part, Shards
from data_pipeline.sets.bounded_cache import BoundedCache
from data_pipeline.sets.contents import IndexedShard, SetContents, Split
from data_pipeline.sets.counts import counted
from data_pipeline.sets.shard_index import ShardIndex
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import NotFoundError

_INDEX_BYTES = 256 << 20
"""Of the indexes that a process keeps in memory."""


class ShardIndexes:
    """The indexes of a set's shards, read when they are asked for.

    The most recently used are kept, up to 256 MiB. Thread-safe and picklable; a copy in another
    process reads its own.
    """

    def __init__(self, url: str, shards: Shards, known: Sequence[ShardIndex] = ()) -> None:
        self._url = url
        self._shards = shards
        self._known = known
        self._kept: BoundedCache[ShardIndex] = BoundedCache(_INDEX_BYTES, _memory)

    def __len__(self) -> int:
        return len(self._shards)

    def of(self, shard: int) -> ShardIndex:
        """The index of a shard, by its number in the set.

        Raises:
            UserError: It is missing or not that of the manifest.
        """
        return self._known[shard] if self._known else self._kept.get(shard, self._read)

    def _read(self, number: int) -> ShardIndex:
        shard = self._shards[number]
        path = storage.join(self._url, shard.index_name)
        again = (
            f"copy it here again, or index the set again with `mezzotint data index {self._url}`"
        )
        try:
            content = storage.read_bytes(path)
        except NotFoundError as error:
            raise UserError(f"{error}: the index of shard '{shard.name}'; {again}") from error
        if sha256(content) != shard.index:
            raise UserError(f"{path}: does not match its manifest; {again}")
        index = ShardIndex.from_bytes(content, path)
        if len(index) != shard.samples:
            raise UserError(f"{path}: {len(index):,} samples instead of {shard.samples:,}; {again}")
        return index


def _memory(index: ShardIndex) -> int:
    return index.memory


@dataclass(frozen=True)
class StoredSet:
    """A set on disk: where it is, its manifest, and the indexes of its shards."""

    url: str
    """Of the directory with the manifest."""
    manifest: Manifest
    indexes: ShardIndexes

    @property
    def shards_url(self) -> str:
        """Of the directory with the shards."""
        return self.manifest.location or self.url


class _Format(BaseModel, extra="ignore"):
    format: int = 1


def parsed(manifest: bytes) -> Manifest | SetContents:
    """The content of a manifest of either format.

    Raises:
        ValidationError: It is not valid.
    """
    if _Format.model_validate_json(manifest).format == 1:
        return SetContents.model_validate_json(manifest)
    return Manifest.model_validate_json(manifest)


def read_set(url: str) -> StoredSet:
    """The set in the directory `url`, of either format.

    Raises:
        UserError: There is no manifest, or it is not valid.
    """
    return stored_set(url, _read(url))


def stored_set(url: str, found: Manifest | SetContents) -> StoredSet:
    """The set in the directory `url` whose manifest has this content."""
    if isinstance(found, Manifest):
        return StoredSet(url, found, ShardIndexes(url, found.shards))
    contents = found.model_copy(update={"format_1_fingerprint": found.fingerprint})
    indexes = list(contents.indexes())
    counts = counted(indexes, contents.descriptions)
    manifest = counts.manifest(contents, [shard.entry() for shard in contents.shards])
    return StoredSet(url, manifest, ShardIndexes(url, manifest.shards, indexes))


def read_manifest(url: str) -> Manifest:
    """The manifest of the shard set in the directory `url`.

    Raises:
        UserError: There is none, or it is not valid.
    """
    return read_set(url).manifest


def read_contents(url: str) -> SetContents:
    """Every sample of the set in the directory `url`.

    Raises:
        UserError: There is no set, or its manifest or an index is not valid.
    """
    found = _read(url)
    if isinstance(found, SetContents):
        return found.model_copy(update={"format_1_fingerprint": found.fingerprint})
    return contents_of(StoredSet(url, found, ShardIndexes(url, found.shards)))


def contents_of(stored: StoredSet, damaged: list[str] | None = None) -> SetContents:
    """Every sample of a set.

    What is wrong with an index is added to `damaged`, where it is given, and its shard left out.

    Raises:
        UserError: An index is missing or not valid.
    """
    manifest = stored.manifest
    shards = []
    keys: dict[str, dict[Part, list[str]]] = {
        name: {"train": [], "test": []} for name in manifest.splits
    }
    for number, shard in enumerate(manifest.shards):
        try:
            index = stored.indexes.of(number)
        except UserError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
            continue
        samples = tuple(index.samples())
        for name, parts in keys.items():
            for row, sample in enumerate(samples):
                if (part := index.part(name, row)) is not None:
                    parts[part].append(sample.key)
        shards.append(
            IndexedShard(
                name=shard.name,
                bytes=shard.bytes,
                sha256=shard.sha256,
                expanded_bytes=shard.expanded_bytes,
                samples=samples,
            )
        )
    splits = {
        name: Split(
            description=manifest.splits[name].description,
            train=tuple(parts["train"]),
            test=tuple(parts["test"]),
        )
        for name, parts in keys.items()
    }
    tree = {**manifest.record_fields(), "splits": splits, "shards": tuple(shards)}
    return SetContents.model_validate(tree)


def _read(url: str) -> Manifest | SetContents:
    path = storage.join(url, MANIFEST_NAME)
    try:
        return parsed(storage.read_bytes(path))
    except NotFoundError as error:
        raise UserError(
            f"{error}; make it with `mezzotint data index {url}` for an existing tar set, or "
            "`mezzotint data pack` for anything else"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UserError(
            f"{path}: {where}: {first['msg']}; index the set again with `mezzotint data "
            f"index {url}`, which keeps what is valid of it"
        ) from error
