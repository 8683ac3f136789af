"""Indexing one tar."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from data_pipeline.buckets.sizes import size_attributes, sizes_among
from data_pipeline.cache import stored_digest
from data_pipeline.images import IMAGE_EXTENSIONS, upright_size
from data_pipeline.indexing.img2dataset import Table, read_table
from data_pipeline.indexing.known import KnownSample, KnownSet, known_sample
from data_pipeline.indexing.options import IndexOptions
from data_pipeline.manifest import Attribute, Digest, FileName, Part, SampleEntry, ShardEntry
from data_pipeline.packing.reading import comparable
from data_pipeline.packing.source import json_attributes
from data_pipeline.sample_check import sample_faults
from data_pipeline.sets.shard_index import ShardIndex
from data_pipeline.sets.split_rule import RANDOM_SPLIT, SplitRule, captions_digest
from data_pipeline.tar import index_tar, local_tar, read_member
from data_pipeline.text.captions import caption_lines
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError

_NO_ATTRIBUTES = "KEY.json that is not a JSON object: no attributes"


class IndexedTar(BaseModel, frozen=True, extra="forbid"):
    """A tar whose index is written, and an account of what was found in it."""

    name: FileName
    bytes: int
    sha256: Digest
    expanded_bytes: int | None
    samples: int
    index: Digest
    excluded: tuple[str, ...] = ()
    ignored: dict[str, tuple[str, ...]] = {}
    notes: tuple[str, ...] = ()
    failed: int = 0
    """Rows of its table that were not downloaded."""
    added: tuple[str, ...] = ()
    """Keys that the shard did not have before."""
    gone: tuple[str, ...] = ()
    """Keys that it had before."""

    def entry(self) -> ShardEntry:
        return ShardEntry(
            self.name, self.bytes, self.sha256, self.expanded_bytes, self.samples, self.index
        )


@dataclass(frozen=True)
class TarTask:
    """A tar to index."""

    url: str
    out: str
    file: str
    table: str | None
    """The file of img2dataset's rows of this tar, if there is one."""
    options: IndexOptions


def splits_of(known: KnownSet, options: IndexOptions) -> dict[str, str]:
    """Descriptions of the splits of the set that is indexed."""
    made = {} if options.split is None else {RANDOM_SPLIT: options.split.description}
    return {**made, **known.splits}


@dataclass
class _Found:
    """The account of a tar while it is read."""

    excluded: list[str] = field(default_factory=list)
    ignored: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failed: int = 0

    def ignore(self, rule: str, name: str) -> None:
        self.ignored.setdefault(rule, []).append(name)


def index_one(
    known: KnownSet, task: TarTask, advance: Callable[[float], None] | None = None
) -> IndexedTar:
    """Write the index of a tar of a set of which this is known.

    `advance` is called with the fraction that is read.

    Raises:
        UserError: It cannot be read, or has a name that no shard can have.
    """
    path, found = storage.join(task.url, task.file), _Found()
    try:
        TypeAdapter(FileName).validate_python(task.file)
    except ValidationError as error:
        raise UserError(
            f"{path}: the name of a shard has letters, digits, '_', '-' and '.' only; rename it"
        ) from error
    with local_tar(path) as tar:
        digest = stored_digest(path, tar.stored)
        samples = _samples(task, tar.plain, found, advance)
        stored, plain = tar.stored.stat().st_size, tar.plain.stat().st_size
        hashes = _hashes(task.options.split, tar.plain, samples)
    index, added, gone = _with_known(known, task, digest, samples, hashes, found)
    content = index.to_bytes()
    done = IndexedTar(
        name=task.file,
        bytes=stored,
        sha256=digest,
        expanded_bytes=plain if task.file.endswith(".gz") else None,
        samples=len(samples),
        index=sha256(content),
        excluded=tuple(found.excluded),
        ignored={rule: tuple(names) for rule, names in found.ignored.items()},
        notes=tuple(found.notes),
        failed=found.failed,
        added=tuple(added),
        gone=tuple(gone),
    )
    storage.write_bytes(storage.join(task.out, done.entry().index_name), content)
    return done


def _samples(
    task: TarTask, tar: Path, found: _Found, advance: Callable[[float], None] | None
) -> list[SampleEntry]:
    """The complete samples of an uncompressed tar, with the attributes of KEY.json and table."""
    file, options = task.file, task.options
    table = Table() if task.table is None else read_table(storage.join(task.url, task.table))
    found.failed = table.failed
    members = index_tar(tar, file)
    for rule, names in members.ignored.items():
        for name in names:
            found.ignore(rule, f"{file}: {name}")
    complete = [one for one in members.samples if _is_complete(one, file, found)]
    samples = []
    faults = sample_faults(tar, complete, images=options.images, workers=options.workers)
    for number, (sample, fault) in enumerate(zip(complete, faults, strict=True), 1):
        if advance is not None:
            advance(number / len(complete))
        if fault is not None:
            found.excluded.append(f"{file}: {fault}")
            continue
        attributes = {**table.attributes(sample.key), **_attributes(tar, sample, file, found)}
        try:
            attributes |= _size(tar, sample) if options.image_sizes else {}
        except UserError as error:  # of an image that was not decoded
            found.excluded.append(f"{file}: {error}")
            continue
        samples.append(sample.model_copy(update={"attributes": attributes}))
    return samples


def _hashes(rule: SplitRule | None, tar: Path, samples: list[SampleEntry]) -> list[str]:
    """Of every sample, the digest of what a rule hashes; none without a rule."""
    if rule is None:
        return []
    found = []
    for sample in samples:
        image = next((name for name in IMAGE_EXTENSIONS if name in sample.members), None)
        if rule.by == "caption":
            text = read_member(tar, *sample.members["txt"]).decode("utf-8-sig")
            captions = (sha256(comparable(line))[:16] for line in caption_lines(text))
            found.append(captions_digest(captions))
        elif rule.by == "image" and image is not None:
            found.append(sha256(read_member(tar, *sample.members[image])))
        else:
            found.append(sha256(sample.key))
    return found


def _with_known(
    known: KnownSet,
    task: TarTask,
    digest: str,
    samples: list[SampleEntry],
    hashes: list[str],
    found: _Found,
) -> tuple[ShardIndex, list[str], list[str]]:
    """The index with what was known of the samples, keys that are new, and keys that are gone.

    Attributes of a shard that is as it was are taken over; in another, new ones go before.
    """
    before, unchanged = None, False
    try:
        before, unchanged = known.index(task.file, digest)
    except UserError as error:
        found.notes.append(f"{error}: attributes and splits of its samples are lost")
    rows = {} if before is None else {key: row for row, key in enumerate(before.keys)}
    entries: list[SampleEntry] = []
    parts: list[Mapping[str, Part]] = []
    added: list[str] = []
    for number, sample in enumerate(samples):
        earlier: KnownSample | None
        if before is not None and sample.key in rows:
            earlier = known_sample(before, rows[sample.key])
        else:
            added.append(sample.key)
            earlier = known.sample(sample.key)
        earlier = earlier or KnownSample({}, {})
        own = {} if unchanged else sample.attributes
        attributes = {**earlier.attributes, **own} if known.stored else sample.attributes
        if task.options.image_sizes:
            attributes = {**attributes, **sizes_among(sample.attributes)}
        entries.append(sample.model_copy(update={"attributes": attributes}))
        rule = task.options.split
        made = {} if rule is None else {RANDOM_SPLIT: rule.part(hashes[number])}
        parts.append({**made, **earlier.parts})
    keys = {sample.key for sample in samples}
    splits = {name: [one.get(name) for one in parts] for name in splits_of(known, task.options)}
    return ShardIndex.of(entries, splits), added, [key for key in rows if key not in keys]


def _size(tar: Path, sample: SampleEntry) -> dict[str, Attribute]:
    """Width and height of a sample's image, from its header; nothing without an image."""
    extension = next((name for name in IMAGE_EXTENSIONS if name in sample.members), None)
    if extension is None:
        return {}
    content = read_member(tar, *sample.members[extension])
    return size_attributes(*upright_size(content, f"{sample.key}.{extension}"))


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
