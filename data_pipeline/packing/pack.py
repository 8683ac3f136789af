"""From what users have to a shard set: parallel, resumable, and no pair lost without a word."""

import json
import re
from collections import Counter
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
from data_pipeline.packing.sources import Fault, InvalidSample, Part, Source, open_source
from data_pipeline.selection import select
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError

REJECTED_NAME = "rejected.jsonl"
RANDOM_SPLIT = "random"
_UNKNOWN = "unknown"

_JOURNAL = ".pack"
"""Directory of the unfinished set where finished shards are noted."""


class PackOptions(BaseModel, frozen=True, extra="forbid"):
    """How to pack."""

    name: FileName | None = None
    """Of the new set; by default that of a source that is a set, else ``images``."""
    licence: str | None = None
    """Of the data; by default that of a source that is a set, else ``unknown``."""
    select: tuple[Selection, ...] = ()
    """Which samples of a source that is a set; empty means all."""
    limit: int | None = Field(default=None, gt=0)
    """Take so many of the samples at most: those whose names have the smallest SHA-256, so that
    fewer are a subset of more, and neighbours are as likely as any."""
    image_column: str = "image"
    caption_column: str = "caption"
    attribute_columns: tuple[str, ...] = ()
    """Table columns that selections shall choose by."""
    shard_size: int = Field(default=1000, gt=0)
    workers: int = Field(default=8, gt=0)
    """Pairs read at a time."""
    test_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the captions (by hash, so equal captions stay together) that a split named
    ``random`` holds out."""
    max_pixels: int = Field(default=50_000_000, gt=0, le=178_000_000)
    compress: bool = False

    @property
    def set_name(self) -> str:
        """What the shards are called."""
        return self.name or "images"


class Rejection(BaseModel, frozen=True):
    """A pair that was left out, as a line of ``rejected.jsonl``."""

    name: str
    fault: Fault
    detail: str


@dataclass(frozen=True)
class PackReport:
    """What came of it."""

    url: str
    name: str
    samples: int
    shards: int
    bytes: int
    splits: Mapping[str, tuple[int, int]]
    """Training and test samples of each split."""
    rejected: tuple[Rejection, ...]

    @property
    def faults(self) -> Mapping[Fault, int]:
        """How many pairs were left out, by kind of fault."""
        return Counter(one.fault for one in self.rejected)


class _Chunk(BaseModel, frozen=True):
    """A finished stretch of the source: its shard, if any pair was good, and the bad ones."""

    shard: ShardEntry | None
    rejected: tuple[Rejection, ...]
    test: tuple[str, ...]
    """Keys held out by the ``random`` split."""


def pack(src: str, out: str, options: PackOptions, progress: Progress | None = None) -> PackReport:
    """Write the pairs of ``src`` as the shard set ``out``.

    Images keep their bytes; each is decoded once to be sure of it. Interrupted, the same call
    goes on after the last finished shard. Bad pairs are named in ``OUT/rejected.jsonl``. What is
    a set already keeps its keys, attributes, splits and encoder.

    Args:
        src: A folder of images with .txt captions, a CSV, Parquet or JSONL table, a shard set,
            or a folder of tars; local or any fsspec URL.
        out: Directory of the new set, local or any fsspec URL.
        options: How.
        progress: Called with (pairs done, of all).

    Raises:
        UserError: ``src`` is nothing of the kind, ``out`` holds something else, no pair is
            good, or no disk space.
    """
    source = open_source(
        src,
        image_column=options.image_column,
        caption_column=options.caption_column,
        attribute_columns=options.attribute_columns,
    )
    try:
        source, options = _chosen(src, source, options), _named(source.manifest, options)
        plan = _plan(source, options)
        if storage.exists(storage.join(out, MANIFEST_NAME)):
            return _report_finished(out, plan)
        _begin(out, plan)
        chunks = [
            _chunk(source, out, number, options, progress)
            for number in range(-(-len(source.names) // options.shard_size))
        ]
    finally:
        source.close()
    return _finish(src, out, plan, chunks, options, source.manifest)


def _chosen(src: str, source: Source, options: PackOptions) -> Source:
    """The samples of ``source`` that were asked for."""
    indices: Sequence[int] = range(len(source.names))
    if options.select:
        if source.manifest is None:
            raise UserError(f"{src}: is no shard set, so it has no splits to choose from")
        indices = select(source.manifest, options.select).tolist()
    if options.limit is not None and options.limit < len(indices):
        indices = sorted(sorted(indices, key=lambda i: _hash(source.names[i]))[: options.limit])
    return source if len(indices) == len(source.names) else Part(source, indices)


def _hash(name: str) -> str:
    return sha256(name)


def _named(source: Manifest | None, options: PackOptions) -> PackOptions:
    """The options, with the name and the licence of a source that has them."""
    if source is None:
        return options
    name = re.sub(r"^[^A-Za-z0-9_]|[^A-Za-z0-9_.-]", "_", source.name)[:180]
    change = {"name": options.name or name, "licence": options.licence or source.licence}
    return options.model_copy(update=change)


def _plan(source: Source, options: PackOptions) -> str:
    described = options.model_dump(mode="json", exclude={"workers"})
    text = json.dumps([described, source.identity], sort_keys=True)
    return sha256(text)


def _begin(out: str, plan: str) -> None:
    path = storage.join(out, f"{_JOURNAL}/plan")
    if storage.exists(path):
        if storage.read_bytes(path).decode() != plan:
            raise UserError(
                f"{out}: holds an unfinished set of another source or other options; repeat that "
                f"command, or delete {storage.join(out, _JOURNAL)} and its shards"
            )
    else:
        storage.write_bytes(path, plan.encode())


def _chunk(
    source: Source, out: str, number: int, options: PackOptions, progress: Progress | None
) -> _Chunk:
    note = storage.join(out, f"{_JOURNAL}/{number:06d}.json")
    first = number * options.shard_size
    indices = range(first, min(first + options.shard_size, len(source.names)))
    if storage.exists(note):
        chunk = _Chunk.model_validate_json(storage.read_bytes(note))
    else:
        samples: list[RawSample] = []
        rejected: list[Rejection] = []
        with ThreadPoolExecutor(options.workers) as pool:
            for done, made in enumerate(pool.map(lambda i: _make(source, i, options), indices)):
                match made:
                    case RawSample():
                        samples.append(made)
                    case Rejection():
                        rejected.append(made)
                if progress is not None:
                    progress(first + done, len(source.names))
        chunk = _Chunk(
            shard=_write(samples, out, number, options),
            rejected=tuple(rejected),
            test=tuple(one.key for one in samples if _held_out(one, options.test_fraction)),
        )
        storage.write_bytes(note, chunk.model_dump_json().encode())
    if progress is not None:
        progress(indices.stop, len(source.names))
    return chunk


def _write(
    samples: list[RawSample], out: str, number: int, options: PackOptions
) -> ShardEntry | None:
    if not samples:
        return None
    file = shard_name(options.set_name, number, compress=options.compress)
    return write_shard(samples, out, file, compress=options.compress)


def _make(source: Source, index: int, options: PackOptions) -> RawSample | Rejection:
    name = source.names[index]
    try:
        pair = source.read(index)
        caption = pair.caption.strip()
        if not caption:
            raise InvalidSample("caption missing", "its caption is empty")
        image = _image(pair.image, name, options) if pair.image is not None else {}
    except InvalidSample as bad:
        return Rejection(name=name, fault=bad.fault, detail=str(bad))
    if pair.key is not None:
        return RawSample(pair.key, {**image, **pair.members}, pair.attributes)
    record = {"source": name, **pair.attributes}
    members = {
        **image,
        "txt": caption.encode(),
        "json": json.dumps(record, ensure_ascii=False).encode(),
    }
    # Numbered, not named after the source: a name from outside is no key and no path.
    return RawSample(f"{index:09d}", members, pair.attributes)


def _image(content: bytes, name: str, options: PackOptions) -> dict[str, bytes]:
    """The image as a member, once it is sure that it is one."""
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
    chunks: Iterable[_Chunk],
    options: PackOptions,
    source: Manifest | None,
) -> PackReport:
    chunks = list(chunks)
    shards = tuple(chunk.shard for chunk in chunks if chunk.shard is not None)
    rejected = tuple(one for chunk in chunks for one in chunk.rejected)
    lines = "".join(one.model_dump_json() + "\n" for one in rejected)
    storage.write_bytes(storage.join(out, REJECTED_NAME), lines.encode())
    if not shards:
        raise UserError(
            f"{src}: none of {len(rejected)} pairs is good; the first: {rejected[0].name}: "
            f"{rejected[0].detail}; all are in {storage.join(out, REJECTED_NAME)}"
        )
    extensions = sorted({name for shard in shards for one in shard.samples for name in one.members})
    meanings = {**_FIELDS, **(source.fields if source else {})}
    keys = {sample.key for shard in shards for sample in shard.samples}
    manifest = Manifest(
        name=options.set_name,
        fields={name: meanings.get(name, "image file as it was") for name in extensions},
        licence=options.licence or _UNKNOWN,
        provenance={**(source.provenance if source else {}), "packed from": src, "plan": plan},
        encoder=source.encoder if source else None,
        splits={
            **(source.splits_of(keys) if source else {}),
            **_random_split(shards, chunks, options),
        },
        shards=shards,
    )
    write_manifest(out, manifest)
    for name in storage.walk(storage.join(out, _JOURNAL)):
        storage.remove(storage.join(out, f"{_JOURNAL}/{name}"))
    storage.remove_directory(storage.join(out, _JOURNAL))
    return _report(out, manifest, rejected)


_FIELDS = {"txt": "caption", "json": "source and attributes"}


def _random_split(
    shards: Iterable[ShardEntry], chunks: Iterable[_Chunk], options: PackOptions
) -> dict[str, Split]:
    if not options.test_fraction:
        return {}
    test = {key for chunk in chunks for key in chunk.test}
    keys = [sample.key for shard in shards for sample in shard.samples]
    return {
        RANDOM_SPLIT: Split(
            description=f"{options.test_fraction:.1%} of the captions held out by hash",
            train=tuple(key for key in keys if key not in test),
            test=tuple(key for key in keys if key in test),
        )
    }


def _report_finished(out: str, plan: str) -> PackReport:
    manifest = read_manifest(out)
    if manifest.provenance.get("plan") != plan:
        raise UserError(
            f"{out}: holds a finished set of another source or other options; choose another "
            "directory or delete it"
        )
    lines = storage.read_bytes(storage.join(out, REJECTED_NAME)).splitlines()
    return _report(out, manifest, tuple(Rejection.model_validate_json(line) for line in lines))


def _report(out: str, manifest: Manifest, rejected: tuple[Rejection, ...]) -> PackReport:
    return PackReport(
        url=out,
        name=manifest.name,
        samples=sum(1 for _ in manifest.samples()),
        shards=len(manifest.shards),
        bytes=sum(shard.bytes for shard in manifest.shards),
        splits={name: (len(one.train), len(one.test)) for name, one in manifest.splits.items()},
        rejected=rejected,
    )
