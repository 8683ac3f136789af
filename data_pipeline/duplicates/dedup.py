"""A split of a set that leaves out images which occur more than once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cache import node_cache
from data_pipeline.duplicates.groups import groups_of
from data_pipeline.duplicates.signature import COLOUR_BYTES, GRADIENT_BYTES, signature
from data_pipeline.images import IMAGE_EXTENSIONS, open_rgb
from data_pipeline.manifest import Manifest, Part
from data_pipeline.packing.shard_writer import Progress
from data_pipeline.sample_check import MAX_PIXELS
from data_pipeline.sets.counts import SetCounts
from data_pipeline.sets.stored_set import StoredSet, read_set
from data_pipeline.sets.write import replace_manifest, write_index
from data_pipeline.shards import ShardReader, check_sizes
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.common.process_pool import map_in_processes, process_count

DEDUPLICATED = "deduplicated"
"""The split: its training part has one sample of every group, its test part the others."""

_SHARDS_PER_PROCESS = 4
_BYTES = 8 + GRADIENT_BYTES + COLOUR_BYTES


@dataclass(frozen=True)
class DedupOptions:
    """What counts as nearly equal."""

    bits: int = 7
    """Of 256 bits of the gradient, 0 to 7 may differ."""
    colours: int = 12
    """Levels of 256 by which the mean colour of a sixteenth of the image may differ."""
    exact: bool = False
    """Find equal files only; no image is decoded."""
    processes: int | None = None
    """Shards read in parallel; None: one for every core, and at least 4 shards for each."""


@dataclass(frozen=True)
class DedupReport:
    """What was found."""

    manifest: Manifest
    images: int
    groups: tuple[tuple[int, ...], ...]
    """Numbers in the set of samples with equal or nearly equal images, the largest groups first."""
    keys: tuple[tuple[str, ...], ...]
    """Of these samples."""
    equal_files: int
    """Samples whose file is that of an earlier one."""
    across: Mapping[str, int]
    """By split: test samples in a group with a training sample."""

    @property
    def left_out(self) -> int:
        return sum(len(group) - 1 for group in self.groups)


def dedup(
    url: str, options: DedupOptions | None = None, progress: Progress | None = None
) -> DedupReport:
    """Find images that occur more than once, and write the split `deduplicated`.

    Of every group the first sample is in its part `train`, the others are in `test`. Tars stay as
    they are; in memory are 88 bytes for every sample. `progress` is called with samples.

    Raises:
        UserError: There is no set, it has no images, or one is damaged.
    """
    options = options or DedupOptions()
    if not 0 <= options.bits < 8:
        raise UserError(f"--bits {options.bits}: 0 to 7 bits of the gradient may differ")
    stored = read_set(url)
    check_sizes(stored)
    rows = _rows(stored, options, progress)
    places = np.flatnonzero(rows.any(axis=1))
    if not len(places):
        raise UserError(f"{url}: has no images; name the set that holds them")
    files = np.ascontiguousarray(rows[places, :8]).view(np.uint64).reshape(-1)
    signatures = rows[places, 8:]
    if options.exact:
        signatures = np.zeros((len(places), _BYTES - 8), dtype=np.uint8)
        signatures[:, :8] = rows[places, :8]
        groups = groups_of(files, signatures, 0, 0)
    else:
        groups = groups_of(files, signatures, options.bits, options.colours)
    groups = [[int(places[one]) for one in group] for group in groups]
    groups.sort(key=len, reverse=True)
    equal = len(files) - len(np.unique(files))
    keys, across = _described(stored, groups)
    manifest = _write(stored, groups, set(places.tolist()), options)
    return DedupReport(manifest, len(places), tuple(map(tuple, groups)), keys, equal, across)


def _rows(stored: StoredSet, options: DedupOptions, progress: Progress | None) -> NDArray[np.uint8]:
    """Of every sample, (n, 88): digest of its image file and signature; zeros without an image."""
    shards = range(len(stored.manifest.shards))
    count = process_count(options.processes, len(shards), _SHARDS_PER_PROCESS)
    shared = _Reading(stored, exact=options.exact)
    found: dict[int, NDArray[np.uint8]] = {}
    done = 0
    for shard, rows in _read(shared, shards, count):
        found[shard] = rows
        done += len(rows)
        if progress is not None:
            progress(done, stored.manifest.sample_count)
    if not found:
        return np.zeros((0, _BYTES), dtype=np.uint8)
    return np.concatenate([found[shard] for shard in shards])


@dataclass(frozen=True)
class _Reading:
    """What is read of all shards."""

    stored: StoredSet
    exact: bool


def _read(
    reading: _Reading, shards: Sequence[int], processes: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    if processes == 1:
        return ((shard, _read_shard(reading, shard)) for shard in shards)
    return map_in_processes(_read_shard, reading, shards, processes)


def _read_shard(reading: _Reading, shard: int) -> NDArray[np.uint8]:
    stored = reading.stored
    index, reader = stored.indexes.of(shard), ShardReader(stored, node_cache())
    rows = np.zeros((len(index), _BYTES), dtype=np.uint8)
    try:
        for row, sample in enumerate(index.samples()):
            extension = next((one for one in IMAGE_EXTENSIONS if one in sample.members), None)
            if extension is None:
                continue
            content = reader.read(shard, *sample.members[extension])
            rows[row, :8] = np.frombuffer(bytes.fromhex(sha256(content)[:16]), dtype=np.uint8)
            if not reading.exact:
                name = f"{stored.manifest.shards[shard].name}: {sample.key}.{extension}"
                image = open_rgb(content, f"{stored.url}: {name}", max_pixels=MAX_PIXELS)
                rows[row, 8:] = signature(image)
    finally:
        reader.close()
    return rows


def _described(
    stored: StoredSet, groups: Sequence[Sequence[int]]
) -> tuple[tuple[tuple[str, ...], ...], dict[str, int]]:
    """The keys of groups, and what groups have across splits."""
    splits = [name for name in stored.manifest.splits if name != DEDUPLICATED]
    across = dict.fromkeys(splits, 0)
    found = []
    for group in groups:
        keys, parts = [], []
        for number in group:
            shard, row = stored.manifest.place_of(number)
            index = stored.indexes.of(shard)
            keys.append(index.keys[row])
            parts.append({name: index.part(name, row) for name in splits})
        found.append(tuple(keys))
        for name in splits:
            own = [one[name] for one in parts]
            across[name] += own.count("test") if "train" in own else 0
    return tuple(found), across


def _write(
    stored: StoredSet, groups: Sequence[Sequence[int]], images: set[int], options: DedupOptions
) -> Manifest:
    """Write the indexes with the split, then the manifest."""
    manifest = stored.manifest
    left_out = {number for group in groups for number in group[1:]}
    near = "equal files" if options.exact else "equal or nearly equal images"
    descriptions = {name: split.description for name, split in manifest.splits.items()}
    descriptions[DEDUPLICATED] = f"one sample of every group of {near}; the others are test samples"
    counts, entries, first = SetCounts(descriptions), [], 0
    for number, shard in enumerate(manifest.shards):
        index = stored.indexes.of(number)
        parts: list[Part | None] = [
            None if one not in images else "test" if one in left_out else "train"
            for one in range(first, first + len(index))
        ]
        first += len(index)
        changed = index.with_split(DEDUPLICATED, parts)
        counts.add(changed)
        entries.append(write_index(stored.url, shard, changed))
    record = manifest.model_copy(update={"format_1_fingerprint": None})
    found = counts.manifest(record, entries, manifest.location)
    if found != manifest:
        replace_manifest(stored.url, found)
    return found
