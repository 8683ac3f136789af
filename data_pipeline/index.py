"""Indexing tars in place: the manifest of what they hold, with what an older one knew."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from data_pipeline.cache import stored_digest
from data_pipeline.images import IMAGE_EXTENSIONS
from data_pipeline.manifest import (
    INDEX_SUFFIX,
    MANIFEST_NAME,
    Attribute,
    FileName,
    Manifest,
    SampleEntry,
)
from data_pipeline.packing.shard_writer import Progress
from data_pipeline.packing.source import json_attributes
from data_pipeline.sample_check import sample_faults
from data_pipeline.sets.contents import IndexedShard, SetContents, Split
from data_pipeline.sets.known import KnownSet, known_set
from data_pipeline.sets.stored_set import read_manifest
from data_pipeline.sets.write import write_contents
from data_pipeline.shards import RECORDS, TARS
from data_pipeline.tar import index_tar, local_tar, read_member
from mezzotint.common import storage
from mezzotint.common.errors import UserError, first_error

_EXAMPLES = 3
_NOT_A_TAR = "not a .tar or .tar.gz file"
_RECORD = "record of packing"
_CONVERTED = "the manifest listed every sample (format 1); it lists shards now, with an index each"
_NO_ATTRIBUTES = "KEY.json that is not a JSON object: no attributes"


@dataclass(frozen=True)
class IndexOptions:
    """What to write into the manifest, and what to check. None: as in the manifest before."""

    name: str | None = None
    licence: str | None = None
    images: bool = True
    """Decode every image, and exclude those that are damaged."""
    workers: int = 8
    """Samples read in parallel."""
    out: str | None = None
    """Directory for manifest and indexes; None: that of the tars."""


@dataclass(frozen=True)
class IndexReport:
    """The manifest, and an account of everything else that was found."""

    manifest: Manifest
    excluded: tuple[str, ...]
    """Samples that are not part of the set, with the reason."""
    ignored: Mapping[str, Sequence[str]]
    """Files and members that are no samples, by rule."""
    changes: tuple[str, ...]
    """Differences from the manifest before; none if there was none."""


@dataclass
class _Found:
    """The account of an index while it is made."""

    excluded: list[str] = field(default_factory=list)
    ignored: dict[str, list[str]] = field(default_factory=dict)

    def ignore(self, rule: str, name: str) -> None:
        self.ignored.setdefault(rule, []).append(name)


def index(
    url: str, options: IndexOptions | None = None, progress: Progress | None = None
) -> IndexReport:
    """Write the manifest and the indexes of an existing webdataset tar set.

    They are written beside the tars, or into `options.out`, for tars that one may only read.

    Strings and integers of KEY.json become attributes. Not part of the set are samples without a
    caption, without an image or array, or with a member that does not decode. Name, licence,
    fields, provenance, encoder, splits and attributes of a manifest that is there already are kept.

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
    known = known_set(out)
    found = _Found()
    for name in sorted(present.keys() - {*names, MANIFEST_NAME}):
        if not name.endswith(INDEX_SUFFIX):
            found.ignore(_RECORD if name in RECORDS else _NOT_A_TAR, name)
    shards: list[IndexedShard] = []
    done, total = 0, sum(present[name] for name in names)
    for file in names:
        advance = partial(_advance, progress, done, present[file], total)
        shards.append(_index_shard(url, file, found, options, advance))
        done += present[file]
    if not any(shard.samples for shard in shards):
        first = f"; the first: {found.excluded[0]}" if found.excluded else ""
        raise UserError(
            f"{url}: the tars hold no sample to index, {len(found.excluded):,} were excluded"
            f"{first}; correct them; no manifest is written"
        )
    old, notes = known.contents, known.notes
    contents = _contents(url, _with_attributes(shards, old), known, options)
    changes = (*notes, *_changes(old, contents)) if old is not None else notes
    if contents == old and known.is_current:
        manifest = read_manifest(out)
    else:
        if contents != old and (old is not None or notes):
            provenance = {**contents.provenance, "indexed in place": url}
            contents = contents.model_copy(update={"provenance": provenance})
        elif old is not None:
            changes = (*changes, _CONVERTED)
        manifest = write_contents(out, contents, None if out == url else url)
    return IndexReport(manifest, tuple(found.excluded), found.ignored, changes)


def _contents(
    url: str, shards: Sequence[IndexedShard], known: KnownSet, options: IndexOptions
) -> SetContents:
    extensions = {name for shard in shards for one in shard.samples for name in one.members}
    keys = {one.key for shard in shards for one in shard.samples}
    before = known.fields
    splits: Mapping[str, Split] = before["splits"]
    tree = {
        **before,
        "name": options.name or before["name"],
        "fields": {name: before["fields"].get(name, "as found") for name in sorted(extensions)},
        "licence": options.licence or before["licence"],
        "provenance": before["provenance"] or {"indexed in place": url},
        "splits": {name: split.restricted(keys) for name, split in splits.items()},
        "shards": tuple(shards),
    }
    try:
        return SetContents.model_validate(tree)
    except ValidationError as error:
        message = first_error(error).removeprefix("Value error, ")
        raise UserError(
            f"{url}: {message}; pack the tars, which gives new keys: "
            f"`mezzotint data pack {url} OUT --read tars`"
        ) from error


def _advance(progress: Progress | None, done: int, size: int, total: int, fraction: float) -> None:
    """Report that this fraction of a shard is read."""
    if progress is not None:
        progress(done + int(size * fraction), total)


def _index_shard(
    url: str,
    file: str,
    found: _Found,
    options: IndexOptions,
    advance: Callable[[float], None],
) -> IndexedShard:
    path = storage.join(url, file)
    try:
        TypeAdapter(FileName).validate_python(file)
    except ValidationError as error:
        raise UserError(
            f"{path}: the name of a shard has letters, digits, '_', '-' and '.' only; rename it"
        ) from error
    with local_tar(path) as tar:
        members = index_tar(tar.plain, file)
        for rule, names in members.ignored.items():
            for name in names:
                found.ignore(rule, f"{file}: {name}")
        complete = [one for one in members.samples if _is_complete(one, file, found)]
        entries = []
        faults = sample_faults(tar.plain, complete, images=options.images, workers=options.workers)
        for number, (sample, fault) in enumerate(zip(complete, faults, strict=True), 1):
            advance(number / len(complete))
            if fault is not None:
                found.excluded.append(f"{file}: {fault}")
                continue
            attributes = _attributes(tar.plain, sample, file, found)
            entries.append(sample.model_copy(update={"attributes": attributes}))
        return IndexedShard(
            name=file,
            bytes=tar.stored.stat().st_size,
            sha256=stored_digest(path, tar.stored),
            expanded_bytes=tar.plain.stat().st_size if file.endswith(".gz") else None,
            samples=tuple(entries),
        )


def _is_complete(sample: SampleEntry, file: str, found: _Found) -> bool:
    """Whether a sample has a caption, and an image or array."""
    whole = [name for name in sample.members if name in (*IMAGE_EXTENSIONS, "txt")]
    for name in sample.members:
        if not whole and name.rpartition(".")[2] in (*IMAGE_EXTENSIONS, "txt"):
            found.excluded.append(
                f"{file}: {sample.key}.{name}: a key has no dots; rename the members, or copy the "
                "set with `mezzotint data pack`, which takes such names"
            )
            return False
    if "txt" not in sample.members:
        found.excluded.append(f"{file}: {sample.key}: no caption (txt)")
        return False
    if not any(name in IMAGE_EXTENSIONS or name.endswith(".npy") for name in sample.members):
        found.excluded.append(f"{file}: {sample.key}: no image (png, jpg, webp) or array (npy)")
        return False
    return True


def _attributes(tar: Path, sample: SampleEntry, file: str, found: _Found) -> dict[str, Attribute]:
    """The attributes in KEY.json, if there is one."""
    if "json" not in sample.members:
        return {}
    content = read_member(tar, *sample.members["json"])
    try:
        valid = isinstance(json.loads(content), dict)
    except ValueError:
        valid = False
    if not valid:
        found.ignore(_NO_ATTRIBUTES, f"{file}: {sample.key}.json")
    return json_attributes(content) if valid else {}


def _with_attributes(shards: Sequence[IndexedShard], old: SetContents | None) -> list[IndexedShard]:
    """The shards with the attributes of the manifest before.

    Those of a shard that is as it was are taken over; in another, KEY.json goes before.
    """
    if old is None:
        return list(shards)
    known = {sample.key: sample.attributes for sample in old.samples()}
    unchanged = {shard.sha256 for shard in old.shards}
    merged = []
    for shard in shards:
        samples = []
        for sample in shard.samples:
            attributes = sample.attributes
            if sample.key in known:
                before = known[sample.key]
                attributes = before if shard.sha256 in unchanged else {**before, **attributes}
            samples.append(sample.model_copy(update={"attributes": attributes}))
        merged.append(shard.model_copy(update={"samples": tuple(samples)}))
    return merged


def _changes(old: SetContents, new: SetContents) -> tuple[str, ...]:
    """What is different from the manifest before, a sentence each."""
    changes = [
        f"{name}: '{before}' is now '{after}'"
        for name, before, after in (
            ("name", old.name, new.name),
            ("licence", old.licence, new.licence),
        )
        if before != after
    ]
    digests = ({one.name: one.sha256 for one in manifest.shards} for manifest in (old, new))
    before, after = digests
    changes += _listed("new shards", sorted(after.keys() - before.keys()))
    changes += _listed("shards that are gone", sorted(before.keys() - after.keys()))
    both = before.keys() & after.keys()
    changes += _listed("changed shards", sorted(n for n in both if before[n] != after[n]))
    keys_before = {sample.key for sample in old.samples()}
    keys_after = {sample.key for sample in new.samples()}
    splits = f", which are in none of the splits {', '.join(new.splits)}" if new.splits else ""
    changes += _listed(f"new samples{splits}", sorted(keys_after - keys_before))
    changes += _listed("samples that are gone, also from splits", sorted(keys_before - keys_after))
    return tuple(changes)


def _listed(what: str, names: Sequence[str]) -> list[str]:
    """`new shards: 2 (a, b)`; nothing of no names."""
    if not names:
        return []
    more = " ..." if len(names) > _EXAMPLES else ""
    return [f"{what}: {len(names):,} ({', '.join(names[:_EXAMPLES])}{more})"]
