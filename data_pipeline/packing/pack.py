"""Packing image-text pairs into a shard set: parallel, resumable, every rejected pair reported."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import BaseModel, Field

from data_pipeline.config import Selection
from data_pipeline.images import extension_of, open_rgb
from data_pipeline.manifest import (
    MANIFEST_NAME,
    FileName,
    Manifest,
    ShardEntry,
    Split,
    read_manifest,
    write_manifest,
)
from data_pipeline.packing.shard_writer import Progress, RawSample, shard_name, write_shard
from data_pipeline.packing.source import Fault, InvalidSample, Source
from data_pipeline.packing.sources import open_source
from data_pipeline.selection import select
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError

REJECTED_NAME = "rejected.jsonl"
RANDOM_SPLIT = "random"

_EXAMPLES = 2
_JOURNAL = ".pack"
"""Directory of the unfinished set that records finished shards."""


class PackOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of `pack`."""

    name: FileName | None = None
    """Of the new set; default: that of a source that is a set, else `images`."""
    licence: str | None = None
    """Of the data; default: that of a source that is a set, else `unknown`."""
    select: tuple[Selection, ...] = ()
    """Samples of a source that is a set; empty: all."""
    limit: int | None = Field(default=None, gt=0)
    """Maximum number of samples: those whose names have the smallest SHA-256, so that a smaller
    limit gives a subset and the order of the source has no influence."""
    image_column: str = "image"
    caption_column: str = "caption"
    attribute_columns: tuple[str, ...] = ()
    """Table columns to select by."""
    shard_size: int = Field(default=1000, gt=0)
    workers: int = Field(default=8, gt=0)
    """Pairs read in parallel."""
    test_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Fraction of the captions (by hash, so equal captions stay together) that a split named
    `random` holds out."""
    max_pixels: int = Field(default=50_000_000, gt=0, le=178_000_000)
    compress: bool = False

    @property
    def set_name(self) -> str:
        return self.name or "images"


class Rejection(BaseModel, frozen=True):
    """A rejected pair, as a line of `rejected.jsonl`."""

    name: str
    fault: Fault
    detail: str


class Ignored(BaseModel, frozen=True):
    """What a rule leaves out of a source: the number, and some names."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class PackReport:
    """A packed set, what was rejected, and what the source holds beside its samples."""

    url: str
    manifest: Manifest
    rejected: tuple[Rejection, ...]
    ignored: Mapping[str, Ignored]
    """By rule."""


class _Chunk(BaseModel, frozen=True):
    """One finished shard's worth of the source."""

    shard: ShardEntry | None
    """None if all pairs were rejected."""
    rejected: tuple[Rejection, ...]
    test: tuple[str, ...]
    """Keys that the `random` split holds out."""


def pack(src: str, out: str, options: PackOptions, progress: Progress | None = None) -> PackReport:
    """Write the pairs of `src` as the shard set `out`.

    Image files are stored unchanged, after a trial decoding. After an interruption the same call
    continues with the next shard. Rejected pairs are listed in `OUT/rejected.jsonl`. A source that
    is a set keeps its keys, attributes, splits and encoder.

    `src` is a folder of images with .txt captions, a CSV, Parquet or JSONL table, a shard set, or a
    folder of tars. `src` and `out` are local or any fsspec URL.

    Raises:
        UserError: `src` is none of these, `out` holds another set, all pairs were rejected, or
            there is no disk space.
    """
    source = open_source(
        src,
        image_column=options.image_column,
        caption_column=options.caption_column,
        attribute_columns=options.attribute_columns,
    )
    try:
        indices, options = _selected(src, source, options), _named(source.manifest, options)
        plan = _plan(source, options)
        ignored = _ignored(source)
        if storage.exists(storage.join(out, MANIFEST_NAME)):
            return _report_finished(out, plan, ignored)
        _begin(out, plan)
        chunks = [
            _chunk(source, indices, out, number, options, progress)
            for number in range(-(-len(indices) // options.shard_size))
        ]
    finally:
        source.close()
    manifest, rejected = _finish(src, out, plan, chunks, options, source.manifest)
    return PackReport(out, manifest, rejected, ignored)


def _ignored(source: Source) -> dict[str, Ignored]:
    return {
        rule: Ignored(count=len(names), examples=tuple(names[:_EXAMPLES]))
        for rule, names in sorted(source.ignored.items())
        if names
    }


def _selected(src: str, source: Source, options: PackOptions) -> Sequence[int]:
    """Indices of the samples to pack."""
    indices: Sequence[int] = range(len(source.names))
    if options.select:
        if source.manifest is None:
            raise UserError(f"{src}: is no shard set, so it has no splits to select from")
        indices = select(source.manifest, options.select).tolist()
    if options.limit is not None and options.limit < len(indices):
        by_hash = sorted(indices, key=lambda index: sha256(source.names[index]))
        indices = sorted(by_hash[: options.limit])
    return indices


def _named(source: Manifest | None, options: PackOptions) -> PackOptions:
    """The options with the name and licence of a source that is a set as defaults."""
    if source is None:
        return options
    name = re.sub(r"^[^A-Za-z0-9_]|[^A-Za-z0-9_.-]", "_", source.name)[:180]
    change = {"name": options.name or name, "licence": options.licence or source.licence}
    return options.model_copy(update=change)


def _plan(source: Source, options: PackOptions) -> str:
    """Digest of source and options: what a set, finished or not, was packed from."""
    tree = options.model_dump(mode="json", exclude={"workers"})
    return sha256(json.dumps([tree, source.identity], sort_keys=True))


def _begin(out: str, plan: str) -> None:
    path = storage.join(out, f"{_JOURNAL}/plan")
    if not storage.exists(path):
        storage.write_bytes(path, plan.encode())
    elif storage.read_bytes(path).decode() != plan:
        raise UserError(
            f"{out}: holds an unfinished set of another source or other options; repeat that "
            f"command, or delete {storage.join(out, _JOURNAL)} and its shards"
        )


def _chunk(
    source: Source,
    indices: Sequence[int],
    out: str,
    number: int,
    options: PackOptions,
    progress: Progress | None,
) -> _Chunk:
    """Pack shard `number`, unless the journal has it."""
    record = storage.join(out, f"{_JOURNAL}/{number:06d}.json")
    first = number * options.shard_size
    positions = range(first, min(first + options.shard_size, len(indices)))
    if storage.exists(record):
        chunk = _Chunk.model_validate_json(storage.read_bytes(record))
    else:
        samples: list[RawSample] = []
        rejected: list[Rejection] = []

        def read(position: int) -> RawSample | Rejection:
            return _read(source, indices[position], f"{position:09d}", options)

        with ThreadPoolExecutor(options.workers) as pool:
            for position, result in zip(positions, pool.map(read, positions), strict=True):
                match result:
                    case RawSample():
                        samples.append(result)
                    case Rejection():
                        rejected.append(result)
                if progress is not None:
                    progress(position, len(indices))
        file = shard_name(options.set_name, number, compress=options.compress)
        chunk = _Chunk(
            shard=write_shard(samples, out, file, compress=options.compress) if samples else None,
            rejected=tuple(rejected),
            test=tuple(one.key for one in samples if _held_out(one, options.test_fraction)),
        )
        storage.write_bytes(record, chunk.model_dump_json().encode())
    if progress is not None:
        progress(positions.stop, len(indices))
    return chunk


def _read(source: Source, index: int, key: str, options: PackOptions) -> RawSample | Rejection:
    """A sample of the source; `key` is its key unless it has one."""
    name = source.names[index]
    try:
        sample = source.read(index)
        captions = _single_lines(sample.captions)
        if not captions:
            raise InvalidSample("caption missing", "its caption is empty")
        image = {} if sample.image is None else _image(sample.image, name, options)
    except InvalidSample as error:
        return Rejection(name=name, fault=error.fault, detail=str(error))
    if sample.key is not None:
        return RawSample(sample.key, {**image, **sample.members}, sample.attributes)
    record = {"source": name, **sample.attributes}
    members = {
        **image,
        "txt": "\n".join(captions).encode(),
        "json": json.dumps(record, ensure_ascii=False).encode(),
    }
    return RawSample(key, members, sample.attributes)


def _single_lines(captions: Iterable[str]) -> list[str]:
    """Captions that are not empty, each on one line."""
    joined = (" ".join(caption.splitlines()).strip() for caption in captions)
    return [caption for caption in joined if caption]


def _image(content: bytes, name: str, options: PackOptions) -> dict[str, bytes]:
    """An image as a member, after a trial decoding."""
    extension = extension_of(content)
    if extension is None:
        raise InvalidSample("image unreadable", "not a PNG, JPEG or WebP file")
    try:
        open_rgb(content, name, max_pixels=options.max_pixels)
    except UserError as error:
        raise InvalidSample("image unreadable", str(error)) from error
    return {extension: content}


def _held_out(sample: RawSample, fraction: float) -> bool:
    return int(sha256(sample.members["txt"])[:16], 16) < fraction * 2**64


def _finish(
    src: str,
    out: str,
    plan: str,
    chunks: Sequence[_Chunk],
    options: PackOptions,
    source: Manifest | None,
) -> tuple[Manifest, tuple[Rejection, ...]]:
    """Write the manifest and delete the journal."""
    shards = tuple(chunk.shard for chunk in chunks if chunk.shard is not None)
    rejected = tuple(one for chunk in chunks for one in chunk.rejected)
    lines = "".join(one.model_dump_json() + "\n" for one in rejected)
    storage.write_bytes(storage.join(out, REJECTED_NAME), lines.encode())
    if not shards:
        raise UserError(
            f"{src}: all {len(rejected)} pairs were rejected; the first: {rejected[0].name}: "
            f"{rejected[0].detail}; all are in {storage.join(out, REJECTED_NAME)}"
        )
    extensions = sorted({name for shard in shards for one in shard.samples for name in one.members})
    descriptions = {**_FIELDS, **(source.fields if source else {})}
    keys = [sample.key for shard in shards for sample in shard.samples]
    splits = source.splits_of(set(keys)) if source else {}
    if options.test_fraction:
        test = {key for chunk in chunks for key in chunk.test}
        splits[RANDOM_SPLIT] = Split(
            description=f"{options.test_fraction:.1%} of the captions held out by hash",
            train=tuple(key for key in keys if key not in test),
            test=tuple(key for key in keys if key in test),
        )
    manifest = Manifest(
        name=options.set_name,
        fields={name: descriptions.get(name, "image file as it was") for name in extensions},
        licence=options.licence or "unknown",
        provenance={**(source.provenance if source else {}), "packed from": src, "plan": plan},
        encoder=source.encoder if source else None,
        preprocessing=source.preprocessing if source else None,
        splits=splits,
        shards=shards,
    )
    write_manifest(out, manifest)
    storage.remove_tree(storage.join(out, _JOURNAL))
    return manifest, rejected


_FIELDS = {"txt": "caption", "json": "source and attributes"}


def _report_finished(out: str, plan: str, ignored: Mapping[str, Ignored]) -> PackReport:
    manifest = read_manifest(out)
    if manifest.provenance.get("plan") != plan:
        raise UserError(
            f"{out}: holds a finished set of another source or other options; choose another "
            "directory or delete it"
        )
    lines = storage.read_bytes(storage.join(out, REJECTED_NAME)).splitlines()
    rejected = tuple(Rejection.model_validate_json(line) for line in lines)
    return PackReport(out, manifest, rejected, ignored)
