"""Writing shard sets: every shard whole under its final name, the manifest last."""

import errno
import gzip
import itertools
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from data_pipeline.manifest import (
    MANIFEST_NAME,
    Attribute,
    Manifest,
    Measured,
    Part,
    SetRecord,
    ShardEntry,
)
from data_pipeline.sets.contents import IndexedShard, Split
from data_pipeline.sets.counts import SetCounts
from data_pipeline.sets.journal import ShardJournal
from data_pipeline.sets.shard_index import ShardIndex
from data_pipeline.sets.tar_writer import write_tar
from data_pipeline.sets.write import replace_manifest, write_index
from data_pipeline.tar import split_name
from mezzotint.common import storage
from mezzotint.common.digests import sha256_file
from mezzotint.common.disk_space import check_space
from mezzotint.common.errors import UserError
from mezzotint.common.hint import Detector
from mezzotint.common.preprocessing import Preprocessing
from mezzotint.common.text_features import TextFeatureRecord

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

_TAR_OVERHEAD = 1024
"""Bytes for header and padding of a member, at most."""


@dataclass(frozen=True)
class RawSample:
    """A sample to write: contents by member extension."""

    key: str
    members: Mapping[str, bytes]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)
    """The part of each split that it is in."""

    def __post_init__(self) -> None:
        extension = next(iter(self.members), "txt")
        if split_name(f"{self.key}.{extension}") != (self.key, extension):
            raise UserError(f"key '{self.key}': a key is a name without dots; rename it")


def in_splits(samples: Iterable[RawSample], splits: Mapping[str, Split]) -> Iterator[RawSample]:
    """The samples with their parts of splits by key."""
    parts = {name: split.parts() for name, split in splits.items()}
    for sample in samples:
        own = {name: part[sample.key] for name, part in parts.items() if sample.key in part}
        yield replace(sample, parts=own)


def write_shard(
    samples: Sequence[RawSample], url: str, name: str, *, compress: bool = False
) -> IndexedShard:
    """Write one shard of a set; it appears when it is complete.

    The same samples, at least one, give the same bytes. `name` ends with `.tar`, or `.tar.gz` with
    `compress`, which shrinks small samples (a tar has about 1 kB of overhead per member), but such
    a shard must be expanded into the cache before use.

    Raises:
        UserError: There is no disk space, or the target cannot be written.
    """
    needed = sum(
        len(content) + _TAR_OVERHEAD for sample in samples for content in sample.members.values()
    )
    with _scratch(url, needed) as scratch:
        plain = scratch / "shard.tar"
        try:
            entries, digest = write_tar(samples, plain, name)
            stored = _compress(plain) if compress else plain
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise UserError(f"{url}: no disk space left while writing '{name}'") from error
            raise UserError(f"{url}: '{name}' cannot be written ({error})") from error
        shard = IndexedShard(
            name=name,
            bytes=stored.stat().st_size,
            sha256=sha256_file(stored) if compress else digest,
            expanded_bytes=plain.stat().st_size if compress else None,
            samples=tuple(entries),
        )
        storage.upload(stored, storage.join(url, name))
    return shard


def write_shards(
    samples: Iterable[RawSample],
    url: str,
    *,
    name: str,
    licence: str,
    provenance: Mapping[str, str],
    shard_size: int,
    fields: Mapping[str, str],
    encoder: str | None = None,
    preprocessing: Preprocessing | None = None,
    detector: Detector | None = None,
    text_features: TextFeatureRecord | None = None,
    splits: Mapping[str, str] | None = None,
    compress: bool = False,
    measured: Callable[[], Measured] = Measured,
    journal: ShardJournal | None = None,
) -> Manifest:
    """Write a shard set: `NAME-000000.tar`, ..., the index of each, and `manifest.json`.

    An old manifest at `url` is deleted first: a directory with a manifest is a finished set.
    `samples` are consumed once; `shard_size` of them are in memory at a time. `measured` is called
    after the last of them. `splits` are the descriptions of splits, whose parts the samples name.
    For the other fields of the manifest see `Manifest`. Shards that are finished in the `journal`
    are kept, and their samples are consumed.
    """
    storage.remove(storage.join(url, MANIFEST_NAME))
    written = _Shards(url, name, splits or {}, journal, compress=compress)
    iterator = iter(samples)
    try:
        while group := tuple(itertools.islice(iterator, shard_size)):
            written.add(group)
        found = measured()
    except UserError:
        written.remove()  # nothing is left of a set that cannot be finished
        raise
    record = SetRecord(
        name=name,
        fields=dict(fields),
        licence=licence,
        provenance=dict(provenance),
        encoder=encoder,
        preprocessing=preprocessing,
        detector=detector,
        text_features=text_features,
        latents=found.latents,
        embeddings=found.embeddings,
        empty_text_embedding=found.empty_text_embedding,
    )
    manifest = written.counts.manifest(record, written.entries)
    replace_manifest(url, manifest)
    written.end()
    return manifest


class _Shards:
    """Shards of a set with their indexes, written one after the other."""

    def __init__(
        self,
        url: str,
        name: str,
        splits: Mapping[str, str],
        journal: ShardJournal | None,
        *,
        compress: bool,
    ) -> None:
        self.counts = SetCounts(splits)
        self.entries: list[ShardEntry] = []
        self._url, self._name, self._splits = url, name, splits
        self._journal, self._compress = journal, compress
        self._kept = [] if journal is None else journal.finished

    def add(self, samples: Sequence[RawSample]) -> None:
        """Write a shard, unless it is finished."""
        number = len(self.entries)
        entry, index = self._kept[number] if number < len(self._kept) else self._write(samples)
        self.counts.add(index)
        self.entries.append(entry)

    def _write(self, samples: Sequence[RawSample]) -> tuple[ShardEntry, ShardIndex]:
        number = len(self.entries)
        file = shard_name(self._name, number, compress=self._compress)
        shard = write_shard(samples, self._url, file, compress=self._compress)
        parts = {name: [one.parts.get(name) for one in samples] for name in self._splits}
        index = ShardIndex.of(shard.samples, parts)
        entry = write_index(self._url, shard.entry(), index)
        if self._journal is not None:
            self._journal.write(number, entry)
        return entry, index

    def remove(self) -> None:
        """Delete all of them."""
        for entry in self.entries:
            storage.remove(storage.join(self._url, entry.name))
            storage.remove(storage.join(self._url, entry.index_name))
        self.end()

    def end(self) -> None:
        if self._journal is not None:
            self._journal.end()


def shard_name(name: str, number: int, *, compress: bool = False) -> str:
    """The file name of a shard, `NAME-000042.tar` or `NAME-000042.tar.gz`.

    Characters of `name` that no shard may have become `_`.
    """
    plain = re.sub(r"^[^A-Za-z0-9_]|[^A-Za-z0-9_.-]", "_", name)[:180]
    return f"{plain}-{number:06d}.tar{'.gz' if compress else ''}"


def _compress(plain: Path) -> Path:
    stored = plain.with_suffix(".tar.gz")
    target: BinaryIO
    with (
        plain.open("rb") as source,
        stored.open("wb") as target,
        gzip.GzipFile("", "wb", compresslevel=9, fileobj=target, mtime=0) as archive,
    ):
        shutil.copyfileobj(source, archive)
    return stored


@contextmanager
def _scratch(url: str, needed: int) -> Iterator[Path]:
    """A temporary directory, on the disk of a local target so that a rename finishes the shard."""
    parent = storage.local_path(url) if storage.is_local(url) else Path(tempfile.gettempdir())
    check_space(parent, needed, purpose="the next shard")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        directory = tempfile.mkdtemp(prefix=".writing-", dir=parent)
    except OSError as error:
        raise UserError(f"{url}: cannot be written ({error})") from error
    try:
        yield Path(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
