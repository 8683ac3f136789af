"""Indexing tars in place: manifest and indexes of what they hold, with what older ones knew."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from data_pipeline.indexing.img2dataset import belongs_to, tables
from data_pipeline.indexing.journal import Journal
from data_pipeline.indexing.known import KnownSet, known_set
from data_pipeline.indexing.options import IndexOptions, IndexReport
from data_pipeline.indexing.tar import IndexedTar, TarTask, index_one, splits_of
from data_pipeline.manifest import INDEX_SUFFIX, MANIFEST_NAME, Manifest, ShardEntry
from data_pipeline.packing.shard_writer import Progress
from data_pipeline.sets.counts import SetCounts
from data_pipeline.sets.shard_index import ShardIndex
from data_pipeline.sets.write import replace_manifest
from data_pipeline.shards import RECORDS, TARS
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.process_pool import map_in_processes, process_count

_EXAMPLES = 3
_TARS_PER_PROCESS = 8
_NOT_A_TAR = "not a .tar or .tar.gz file"
_RECORD = "record of packing"
_TABLE = "table of img2dataset, whose columns are attributes"
_CONVERTED = "the manifest listed every sample (format 1); it lists shards now, with an index each"


def index(
    url: str, options: IndexOptions | None = None, progress: Progress | None = None
) -> IndexReport:
    """Write the manifest and the indexes of an existing webdataset tar set, in place.

    They are written beside the tars, or into `options.out`, for tars that one may only read. After
    an interruption the same call continues with the tars that are left.

    Strings and integers of KEY.json become attributes, and those of img2dataset's tables. Not part
    of the set are samples without a caption, without an image or array, or with a member that does
    not decode. Name, licence, fields, provenance, encoder, splits and attributes of a manifest that
    is there already are kept.

    `progress` is called with bytes.

    Raises:
        UserError: There are no tars, one is damaged, no sample is left, or a key occurs twice.
    """
    options = options or IndexOptions()
    present = storage.sizes(url)
    names = sorted(name for name in present if name.endswith(TARS))
    if not names:
        raise UserError(f"{url}: no .tar or .tar.gz file in this directory")
    out = options.out or url
    is_new = out != url and not storage.exists(storage.join(out, MANIFEST_NAME))
    known, rows = known_set(url if is_new else out, out), tables(names, present)
    tasks = [TarTask(url, out, name, rows.get(name), options) for name in names]
    journal = Journal(out, _plan(known, options))
    read = _indexed(known, tasks, present, journal, progress)
    found = sorted(read, key=lambda one: one.name)
    ignored = _ignored(found, names, present)
    excluded = tuple(one for tar in found for one in tar.excluded)
    if not any(tar.samples for tar in found):
        first = f"; the first: {excluded[0]}" if excluded else ""
        raise UserError(
            f"{url}: the tars hold no sample to index, {len(excluded):,} were excluded"
            f"{first}; correct them; no manifest is written"
        )
    manifest = _manifest(url, found, known, options)
    notes = [*known.notes, *(note for tar in found for note in tar.notes)]
    if failed := [tar.failed for tar in found if tar.failed]:
        notes.append(
            f"rows that img2dataset did not download: {sum(failed):,}, of {len(failed)} tars"
        )
    changes = []
    old = known.stored.manifest if known.stored is not None else None
    if old is not None:
        changes += _changes(known, manifest, found)
        if old.shard_columns.index is None and manifest.fingerprint == old.fingerprint:
            changes.append(_CONVERTED)
    if manifest != old:
        replace_manifest(out, manifest)
    journal.end()
    return IndexReport(manifest, excluded, ignored, tuple(changes), tuple(notes))


def _plan(known: KnownSet, options: IndexOptions) -> str:
    """Digest of what the index of a tar depends on, beside the tar."""
    before = "" if known.stored is None else known.stored.manifest.fingerprint
    sizes = " sizes" if options.image_sizes else ""
    return sha256(f"{before} {options.images} {options.split}{sizes}")


def _indexed(
    known: KnownSet,
    tasks: Sequence[TarTask],
    sizes: dict[str, int],
    journal: Journal,
    progress: Progress | None,
) -> Iterator[IndexedTar]:
    """The tars with their indexes, in any order; those of an interrupted call are not read."""
    done, total = 0, sum(sizes[task.file] for task in tasks)

    def report(size: int, fraction: float = 0.0) -> None:
        if progress is not None:
            progress(done + int(size * fraction), total)

    left = []
    for task in tasks:
        if (before := journal.read(task)) is None:
            left.append(task)
            continue
        done += sizes[task.file]
        yield before
    if done:
        report(0)
    processes = process_count(tasks[0].options.processes, len(left), _TARS_PER_PROCESS)
    if processes == 1:
        for task in left:
            found = index_one(known, task, partial(report, sizes[task.file]))
            journal.write(task, found)
            done += sizes[task.file]
            yield found
        return
    for task, found in map_in_processes(index_one, known, left, processes):
        journal.write(task, found)
        done += sizes[task.file]
        report(0)
        yield found


def _ignored(
    found: Sequence[IndexedTar], tars: Sequence[str], present: dict[str, int]
) -> dict[str, list[str]]:
    """Files and members that are no samples, by rule."""
    ignored: dict[str, list[str]] = {}
    for name in sorted(present.keys() - {*tars, MANIFEST_NAME}):
        if not name.endswith(INDEX_SUFFIX):
            rule = _RECORD if name in RECORDS else _NOT_A_TAR
            rule = _TABLE if belongs_to(name, tars) else rule
            ignored.setdefault(rule, []).append(name)
    for tar in found:
        for rule, names in tar.ignored.items():
            ignored.setdefault(rule, []).extend(names)
    return ignored


def _manifest(
    url: str,
    found: Sequence[IndexedTar],
    known: KnownSet,
    options: IndexOptions,
) -> Manifest:
    """The manifest of the indexes that are written.

    Raises:
        UserError: A key occurs twice.
    """
    out, record, old = options.out or url, known.record, known.stored
    counts, hashes = SetCounts(splits_of(known, options)), []
    entries = [tar.entry() for tar in found]
    for entry in entries:
        index = _read(out, entry)
        counts.add(index)
        hashes.append(np.fromiter(map(_hash, index.keys), dtype=np.int64, count=len(index)))
    _check_keys(url, out, entries, np.concatenate(hashes))
    fields = {name: record.fields.get(name, "as found") for name in sorted(counts.members)}
    changes: dict[str, object] = {
        "name": options.name or record.name,
        "licence": options.licence or record.licence,
        "fields": fields,
        "provenance": record.provenance or {"indexed in place": url},
        "format_1_fingerprint": None,
    }
    location = None if out == url else url
    manifest = counts.manifest(record.model_copy(update=changes), entries, location)
    if old is None and not known.notes:
        return manifest
    if old is not None and _same(old.manifest, manifest):
        earlier = old.manifest.format_1_fingerprint
        return manifest.model_copy(update={"format_1_fingerprint": earlier})
    provenance = {**manifest.provenance, "indexed in place": url}
    return manifest.model_copy(update={"provenance": provenance})


def _same(old: Manifest, new: Manifest) -> bool:
    """Whether two manifests, perhaps of different formats, are of the same contents."""
    without: dict[str, object] = {"format_1_fingerprint": None, "location": None}
    columns = old.shard_columns
    if columns.index is None:
        columns = columns.model_copy(update={"index": new.shard_columns.index})
    return old.model_copy(update={**without, "shard_columns": columns}) == new.model_copy(
        update=without
    )


def _read(url: str, shard: ShardEntry) -> ShardIndex:
    path = storage.join(url, shard.index_name)
    return ShardIndex.from_bytes(storage.read_bytes(path), path)


def _hash(key: str) -> int:
    return int(sha256(key)[:15], 16)


def _check_keys(
    url: str,
    out: str,
    shards: Sequence[ShardEntry],
    hashes: NDArray[np.int64],
) -> None:
    """Refuse a key that occurs twice.

    Raises:
        UserError: One does; with the shards that hold it.
    """
    values, counts = np.unique(hashes, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    if not repeated:
        return
    holders: dict[str, str] = {}
    for shard in shards:
        for key in _read(out, shard).keys:
            if _hash(key) in repeated and key in holders:
                where = " and ".join(dict.fromkeys((holders[key], shard.name)))
                raise UserError(
                    f"{url}: key '{key}' occurs more than once, in {where}; pack the tars, which "
                    f"gives new keys: `mezzotint data pack {url} OUT --read tars`"
                )
            if _hash(key) in repeated:
                holders[key] = shard.name


def _changes(known: KnownSet, new: Manifest, found: Sequence[IndexedTar]) -> list[str]:
    """What is different from the manifest before, a sentence each."""
    assert known.stored is not None, "the caller asks with a manifest"
    old = known.stored.manifest
    changes = [
        f"{name}: '{before}' is now '{after}'"
        for name, before, after in (
            ("name", old.name, new.name),
            ("licence", old.licence, new.licence),
        )
        if before != after
    ]
    before, after = (
        dict(zip(one.shard_columns.name, one.shard_columns.sha256, strict=True))
        for one in (old, new)
    )
    gone = sorted(before.keys() - after.keys())
    changes += _listed("new shards", sorted(after.keys() - before.keys()))
    changes += _listed("shards that are gone", gone)
    both = before.keys() & after.keys()
    changes += _listed("changed shards", sorted(n for n in both if before[n] != after[n]))
    added = {key for tar in found for key in tar.added}
    lost = {key for tar in found for key in tar.gone} | known.keys_of(gone)
    splits = f", which are in none of the splits {', '.join(new.splits)}" if new.splits else ""
    changes += _listed(f"new samples{splits}", sorted(added - lost))
    changes += _listed("samples that are gone, also from splits", sorted(lost - added))
    return changes


def _listed(what: str, names: Sequence[str]) -> list[str]:
    """`new shards: 2 (a, b)`; nothing of no names."""
    if not names:
        return []
    more = " ..." if len(names) > _EXAMPLES else ""
    return [f"{what}: {len(names):,} ({', '.join(names[:_EXAMPLES])}{more})"]
