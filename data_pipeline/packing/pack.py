"""Packing image-text pairs into a shard set: parallel, resumable, every rejected pair reported."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from data_pipeline.inspection.limits import ELONGATED, TINY
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.records import REJECTED_NAME, Chunk, Content, Records
from data_pipeline.packing.report import PackReport, PartReport, by_rule, counts
from data_pipeline.packing.shard_writer import Progress
from data_pipeline.packing.source import Source, shown_name
from data_pipeline.packing.sources import open_source
from data_pipeline.packing.splits import connected, overlap, random_split, split_by_rule
from data_pipeline.packing.update import Plan, Updater, first_plan, match, revised_name
from data_pipeline.selection import select
from data_pipeline.sets.contents import SetContents, Split
from data_pipeline.sets.split_rule import RANDOM_SPLIT
from data_pipeline.sets.stored_set import read_manifest
from data_pipeline.sets.survey import Survey
from data_pipeline.sets.write import write_contents
from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError

_HINT = "image file of a hint, as it was"
_FIELDS = {"txt": "captions, one a line", "json": "source and attributes"}


def pack(src: str, out: str, options: PackOptions, progress: Progress | None = None) -> PackReport:
    """Write the pairs of `src` as the shard set `out`, or bring that set up to date.

    Image files are stored unchanged, after a trial decoding. After an interruption the same call
    continues with the next shard. On a finished set the same call reads what is new or changed in
    the source, and tries rejected pairs again; everything else of the set stays as it is, also
    what the source no longer has. Rejected pairs are listed in `OUT/rejected.jsonl`. A source that
    is a set keeps its keys, attributes, splits and encoder.

    `src` is a folder of images with captions, a table, a shard set, or a folder of tars. `src` and
    `out` are local or any fsspec URL.

    Raises:
        UserError: `src` is none of these, `out` holds another set, all pairs were rejected, or
            there is no disk space.
    """
    with _updater(src, out, options, progress) as (updater, plan):
        chunks = updater.run(plan)
    source, records, options = updater.source, updater.records, updater.options
    if not any(chunk.shard for chunk in chunks):
        raise _without_samples(src, out, records, chunks)
    contents = {
        item.key: item.content
        for chunk in chunks
        for item in chunk.items
        if item.key is not None and item.content is not None
    }
    packed = _packed(src, chunks, contents, options, records, source.contents)
    rejected = records.write_lists(chunks)
    changed = packed != records.contents
    manifest = write_contents(out, packed) if changed else read_manifest(out)
    _remove_old_shards(out, chunks, records, options)
    records.end()
    return PackReport(
        url=out,
        manifest=manifest,
        rejected=rejected,
        ignored=counts(source.ignored),
        noticed=counts({**source.noticed, **_noticed(chunks, contents, options)}),
        overlap={name: overlap(split, contents) for name, split in packed.splits.items()},
        again=records.contents is not None,
        changes=counts(by_rule(updater.changes)) if records.contents is not None else {},
    )


def pack_part(
    src: str, out: str, options: PackOptions, progress: Progress | None = None
) -> PartReport:
    """Write the shards of `options.part` of a new set, for instance one part on each of n nodes.

    `pack` without a part finishes the set, and writes what shards are missing then.

    Raises:
        UserError: As `pack`, or the set is finished.
    """
    with _updater(src, out, options, progress) as (updater, plan):
        if updater.records.contents is not None or not plan.in_order:
            raise UserError(f"{out}: only new sets are packed in parts; leave out --part")
        chunks = updater.run(plan)
    return PartReport(out, shards=len(chunks), missing=len(plan.chunks) - len(chunks))


@contextmanager
def _updater(
    src: str, out: str, options: PackOptions, progress: Progress | None
) -> Iterator[tuple[Updater, Plan]]:
    """What writes the shards of a set, and its plan; the source is open meanwhile."""
    _check_places(src, out)
    source = open_source(src, options)
    try:
        records = Records(out, _plan(options))
        indices, options = _selected(src, source, options), _named(source.contents, options)
        plan = None
        if records.contents is None:
            plan = first_plan(source, indices, records.chunks, options.shard_size)
        plan = plan or match(source, indices, records.chunks, options.shard_size)
        _check_source(src, out, records, plan, options)
        if records.contents is None:
            records.begin()
        yield Updater(src, source, out, records, options, progress), plan
    finally:
        source.close()


def _selected(src: str, source: Source, options: PackOptions) -> Sequence[int]:
    """Indices of the samples to pack."""
    indices: Sequence[int] = range(len(source.names))
    if options.select:
        if source.stored is None:
            raise UserError(f"{src}: is no shard set, so it has no splits to select from")
        chosen = select(Survey(source.stored), options.select)
        indices = np.concatenate(list(chosen.numbers())).tolist()
    if options.limit is not None and options.limit < len(indices):
        by_hash = sorted(indices, key=lambda index: sha256(shown_name(source.names[index])))
        indices = sorted(by_hash[: options.limit])
    return indices


def _named(source: SetContents | None, options: PackOptions) -> PackOptions:
    """The options with the name and licence of a source that is a set as defaults."""
    if source is None:
        return options
    name = re.sub(r"^[^A-Za-z0-9_]|[^A-Za-z0-9_.-]", "_", source.name)[:180]
    change = {"name": options.name or name, "licence": options.licence or source.licence}
    return options.model_copy(update=change)


def _plan(options: PackOptions) -> str:
    """Digest of the options: what may not differ between calls for the same set."""
    tree = options.model_dump(mode="json", exclude={"workers", "processes", "part", "update"})
    if not options.hint_columns:
        del tree["hint_columns"]  # sets of earlier versions keep their plan
    if options.split_by is None:
        del tree["split_by"]
    for selection in tree["select"]:
        if not selection["within"]:
            del selection["within"]
    if not options.image_sizes:
        del tree["image_sizes"]
    return sha256(json.dumps(tree, sort_keys=True))


def _check_source(src: str, out: str, records: Records, plan: Plan, options: PackOptions) -> None:
    """Refuse to add the pairs of another source to a set.

    Raises:
        UserError: The set was packed from something else.
    """
    if not records.chunks or options.update:
        return
    known = sum(len(chunk.items) for chunk in records.chunks)
    origin = records.contents.provenance.get("packed from", src) if records.contents else src
    moved = _place(origin) != _place(src)
    if plan.matched == 0 or (moved and not plan.matched == known == plan.total):
        finished = "a finished" if records.contents else "an unfinished"
        raise UserError(
            f"{out}: holds {finished} set of another source or other options; choose another "
            "directory, delete it, or replace its samples with --update"
        )


def _check_places(src: str, out: str) -> None:
    """Refuse a set that would lie in its source, or would overwrite it.

    Raises:
        UserError: One is the other or in it, or is not named.
    """
    for url, what in ((src, "SOURCE"), (out, "OUT")):
        if not url.strip():
            raise UserError(f"{what} is empty: give a directory or an fsspec URL")
    source, target = f"{_place(src)}/", f"{_place(out)}/"
    if source.startswith(target) or target.startswith(source):
        raise UserError(f"{out}: give a directory that is not the source, in it, or around it")


def _place(url: str) -> str:
    return str(storage.local_path(url).resolve()) if storage.is_local(url) else url.rstrip("/")


def _without_samples(src: str, out: str, records: Records, chunks: Sequence[Chunk]) -> UserError:
    """The error of a set in which no pair is valid; an unfinished one leaves only the list."""
    rejected = [item.rejection for chunk in chunks for item in chunk.items if item.rejection]
    if not rejected:
        return UserError(f"{src}: there is no pair to pack; {out} is as it was")
    path = storage.join(out, REJECTED_NAME)
    if records.contents is None:
        lines = "".join(one.model_dump_json() + "\n" for one in rejected)
        storage.write_bytes(path, lines.encode())
    records.end()
    return UserError(
        f"{src}: all {len(rejected)} pairs were rejected; the first: {rejected[0].name}: "
        f"{rejected[0].detail}; all are in {path}"
    )


def _packed(
    src: str,
    chunks: Sequence[Chunk],
    contents: Mapping[str, Content],
    options: PackOptions,
    records: Records,
    source: SetContents | None,
) -> SetContents:
    """The contents of the set; what only an earlier manifest knew stays."""
    shards = tuple(chunk.shard for chunk in chunks if chunk.shard is not None)
    before = records.contents
    if before is not None and shards == before.shards:
        return before
    extensions = sorted({name for shard in shards for one in shard.samples for name in one.members})
    described = {
        **_FIELDS,
        **{name: _HINT for name in extensions if name.split(".")[0] in options.hint_columns},
        **(source.fields if source else {}),
        **(before.fields if before else {}),
    }
    keys = {sample.key for shard in shards for sample in shard.samples}
    splits = _splits(keys, before, source)
    if options.test_fraction:
        earlier = splits.get(RANDOM_SPLIT)
        rule = options.split_rule
        if rule is None:
            splits[RANDOM_SPLIT] = random_split(contents, options.test_fraction, earlier)
        else:
            splits[RANDOM_SPLIT] = split_by_rule(contents, rule, earlier)
    fields = {name: described.get(name, "image file as it was") for name in extensions}
    if before is not None:
        changed = {"fields": fields, "splits": splits, "shards": shards, "latents": None}
        tree = {**before.model_dump(), **changed}
        return SetContents.model_validate(tree)
    provenance = {"packed from": src, "plan": records.plan}
    return SetContents(
        name=options.set_name,
        fields=fields,
        licence=options.licence or "unknown",
        provenance={**(source.provenance if source else {}), **provenance},
        encoder=source.encoder if source else None,
        preprocessing=source.preprocessing if source else None,
        splits=splits,
        shards=shards,
    )


def _splits(
    keys: Collection[str], before: SetContents | None, source: SetContents | None
) -> dict[str, Split]:
    """The splits of the earlier set, with the samples that are new in those of the source."""
    splits = before.splits_of(keys) if before is not None else {}
    known = {sample.key for sample in before.samples()} if before is not None else set()
    for name, split in (source.splits_of(keys) if source is not None else {}).items():
        old = splits.get(name, Split(description=split.description, train=(), test=()))
        skipped = known if name in splits else set()
        splits[name] = Split(
            description=old.description,
            train=(*old.train, *(key for key in split.train if key not in skipped)),
            test=(*old.test, *(key for key in split.test if key not in skipped)),
        )
    return splits


def _noticed(
    chunks: Sequence[Chunk], contents: Mapping[str, Content], options: PackOptions
) -> dict[str, list[str]]:
    """Samples that may not be meant as they are, by what was noticed."""
    found: list[tuple[str, str]] = []
    images: set[str] = set()
    for item in (item for chunk in chunks for item in chunk.items if item.key is not None):
        if (content := item.content) is None:
            continue
        if len(content.captions) > 1:
            found.append(("several captions", item.name))
        if content.left_out:
            found.append(("all but the first caption left out", item.name))
        found += [(note, item.name) for note in content.notes]
        if content.size is not None and min(content.size) < TINY:
            found.append((f"a side below {TINY} pixels", item.name))
        if content.size is not None and max(content.size) > ELONGATED * min(content.size):
            found.append((f"more than {ELONGATED:g} times as long as wide", item.name))
        if content.image in images:
            found.append(("the image of another sample", item.name))
        if content.image is not None:
            images.add(content.image)
    if options.test_fraction and options.split_rule is None:
        largest = max(connected(contents), key=len)
        if len(largest) > options.test_fraction * len(contents):
            rule = "one group of equal images or captions, larger than the test fraction"
            found += [(rule, key) for key in largest]
    return by_rule(found)


def _remove_old_shards(
    out: str, chunks: Sequence[Chunk], records: Records, options: PackOptions
) -> None:
    """Delete the shards that were written before and are not in the manifest."""
    if not records.begun:
        return
    current = {chunk.shard.name for chunk in chunks if chunk.shard is not None}
    written = {
        revised_name(options, chunk.number, revision)
        for chunk in chunks
        for revision in range(chunk.revision + 2)
    }
    if records.contents is not None:
        written |= {shard.name for shard in records.contents.shards}
    for name in sorted(storage.sizes(out, written - current).keys() & (written - current)):
        storage.remove(storage.join(out, name))
