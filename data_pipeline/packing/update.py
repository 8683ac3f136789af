"""Bringing a set up to date with its source, shard by shard; a new set has no shards yet."""

from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from data_pipeline.packing.new_shards import (
    SHARDS_PER_PROCESS,
    NewChunk,
    write_chunk,
    write_chunks,
)
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.reading import Pair, read_pair
from data_pipeline.packing.records import Chunk, Item, Records
from data_pipeline.packing.report import Rejection
from data_pipeline.packing.shard_writer import Progress, RawSample, shard_name, write_shard
from data_pipeline.packing.source import Source, shown_name
from data_pipeline.sets.contents import IndexedShard
from data_pipeline.tar import local_tar, read_member
from mezzotint.common import storage
from mezzotint.common.digests import sha256_file
from mezzotint.common.errors import UserError
from mezzotint.common.process_pool import process_count


@dataclass(frozen=True)
class Task:
    """A pair that the set or the source has."""

    item: Item | None
    """As it was packed or rejected before."""
    index: int | None
    """In the source, if it is there."""
    name: str = ""
    """There."""
    stamp: str = ""
    same: bool = False
    """Whether its content is known to be the same as before."""

    @property
    def reads(self) -> bool:
        """Whether it must be read: all but packed pairs that are the same or gone."""
        packed = self.item is not None and self.item.key is not None
        return self.index is not None and not (self.same and packed)


@dataclass(frozen=True)
class Plan:
    """The tasks of every shard, in the order of the set."""

    chunks: list[tuple[Chunk | None, list[Task]]]
    total: int
    matched: int
    """Pairs of the set that the source has."""
    in_order: bool = False
    """Whether shard n has the n-th pairs of the source, as in a set that is packed for the first
    time: then its name and keys do not depend on what was packed before an interruption."""


def first_plan(
    source: Source, indices: Sequence[int], chunks: Sequence[Chunk], size: int
) -> Plan | None:
    """The plan of an unfinished set, `size` pairs of the source to a shard.

    None: a shard of it has other pairs than the source has there now.
    """
    written, tasks = {chunk.number: chunk for chunk in chunks}, []
    for first in range(0, len(indices), size):
        chunk = written.pop(first // size, None)
        known = [
            (index, shown_name(source.names[index]), source.stamp(index))
            for index in indices[first : first + size]
        ]
        items = [None] * len(known) if chunk is None else chunk.items
        if chunk is not None and [(one.name, one.stamp) for one in chunk.items] != [
            (name, stamp) for _, name, stamp in known
        ]:
            return None
        part = [
            Task(item, *one, same=item is not None) for item, one in zip(items, known, strict=True)
        ]
        tasks.append((chunk, part))
    if written:
        return None
    matched = sum(len(chunk.items) for chunk in chunks)
    return Plan(tasks, len(indices), matched, in_order=True)


def match(source: Source, indices: Sequence[int], chunks: Sequence[Chunk], size: int) -> Plan:
    """Find the pairs of a set in its source: by name and stamp, else by stamp, else by name.

    The other pairs of the source come last, `size` to a shard.
    """
    items = [item for chunk in chunks for item in chunk.items]
    known = [(shown_name(source.names[index]), source.stamp(index)) for index in indices]
    by_index = dict(zip(indices, known, strict=True))
    found: dict[int, tuple[int, bool]] = {}
    taken: set[int] = set()

    def find(part: Callable[[tuple[str, str]], object], *, same: bool) -> None:
        waiting: dict[object, deque[int]] = defaultdict(deque)
        for position, item in enumerate(items):
            if position not in found:
                waiting[part((item.name, item.stamp))].append(position)
        for index, one in zip(indices, known, strict=True):
            if index not in taken and (positions := waiting.get(part(one))):
                found[positions.popleft()] = index, same
                taken.add(index)

    if items:
        find(lambda one: one, same=True)
        find(lambda one: one[1], same=True)
        find(lambda one: one[0], same=False)
    tasks: list[tuple[Chunk | None, list[Task]]] = []
    position = 0
    for chunk in chunks:
        part = []
        for item in chunk.items:
            index, same = found.get(position, (None, False))
            name, stamp = by_index[index] if index is not None else ("", "")
            part.append(Task(item, index, name, stamp, same))
            position += 1
        tasks.append((chunk, part))
    for index in indices:
        if index not in taken:
            if not tasks or len(tasks[-1][1]) >= size:
                tasks.append((None, []))
            tasks[-1][1].append(Task(None, index, *by_index[index]))
    return Plan(tasks, sum(len(part) for _, part in tasks), len(found))


@dataclass
class Updater:
    """Writes the shards of a plan."""

    src: str
    source: Source
    out: str
    records: Records
    options: PackOptions
    progress: Progress | None
    changes: list[tuple[str, str]] = field(default_factory=list)
    """What changed, with the name of the pair."""
    _gone: dict[tuple[object, ...], list[Item]] = field(default_factory=dict)
    _renamed: dict[int, Item] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _done: int = 0
    _next: int = 0

    def run(self, plan: Plan) -> list[Chunk]:
        """The shards of the set with their pairs."""
        before = [chunk for chunk, _ in plan.chunks if chunk is not None]
        self._next = max((one.number for chunk in before for one in chunk.items), default=-1) + 1
        self._taken = {chunk.shard.name for chunk in before if chunk.shard is not None}
        chunks = [
            self._chunk(chunk, tasks, plan.total)
            for chunk, tasks in plan.chunks
            if chunk is not None
        ]
        chunks += self._new(plan)
        chunks.sort(key=lambda chunk: chunk.number)
        self.changes += [
            ("no longer in the source, kept", one.name)
            for same in self._gone.values()
            for one in same
        ]
        return [self._with_new_names(chunk) for chunk in chunks]

    def _new(self, plan: Plan) -> list[Chunk]:
        """Write the shards of pairs that the set did not have, in several processes."""
        last = max((chunk.number for chunk, _ in plan.chunks if chunk is not None), default=-1)
        new: list[tuple[NewChunk, list[Task]]] = []
        for place, (chunk, tasks) in enumerate(plan.chunks):
            if chunk is not None:
                continue
            number = place if plan.in_order else last + 1 + len(new)
            first = place * self.options.shard_size if plan.in_order else self._next
            pairs = tuple(
                (task.index, task.name, task.stamp) for task in tasks if task.index is not None
            )
            new.append((NewChunk(number, first, pairs), tasks))
            self._next = max(self._next, first + len(tasks))
        part, parts = self.options.part or (1, 1)
        new = [one for one in new if one[0].number % parts == part - 1]
        if self._gone:  # a pair may be one that is gone, under another name
            return [
                self._chunk(Chunk(number=one.number, shard=None, items=()), tasks, plan.total)
                for one, tasks in new
            ]
        found = []
        for chunk in self._written([one for one, _ in new], plan.total):
            self.records.write(chunk)
            self.changes += [("added", one.name) for one in chunk.items if one.key is not None]
            found.append(chunk)
        return found

    def _written(self, new: Sequence[NewChunk], total: int) -> Iterator[Chunk]:
        processes = process_count(self.options.processes, len(new), SHARDS_PER_PROCESS)
        if processes > 1:
            for chunk in write_chunks(
                self.src, self.source, self.out, new, self.options, processes
            ):
                self._advance(len(chunk.items), total)
                yield chunk
            return
        for one in new:
            yield write_chunk(
                self.source, self.out, one, self.options, lambda: self._advance(1, total)
            )

    def _advance(self, pairs: int, total: int) -> None:
        self._done += pairs
        if self.progress is not None:
            self.progress(self._done, total)

    def _chunk(self, old: Chunk, tasks: Sequence[Task], total: int) -> Chunk:
        """Bring one shard up to date; it is written again if a sample of it changes."""
        items: list[Item] = []
        new: dict[str, RawSample] = {}
        for task, number, result in self._read(tasks, total):
            item, sample = self._settle(task, number, result)
            if item is not None:
                items.append(item)
            if sample is not None:
                new[sample.key] = sample
        keys = [item.key for item in items if item.key is not None]
        before = [one.key for one in old.shard.samples] if old.shard is not None else []
        chunk = old.model_copy(update={"items": tuple(items)})
        if new or set(keys) != set(before):
            name, revision = self._free_name(old)
            samples = [*_kept(self.out, old.shard, set(keys) - set(new)), *new.values()]
            places = {key: place for place, key in enumerate(keys)}
            samples.sort(key=lambda one: places[one.key])
            chunk = chunk.model_copy(
                update={
                    "revision": revision,
                    "shard": write_shard(samples, self.out, name, compress=self.options.compress)
                    if samples
                    else None,
                }
            )
            self.records.write(chunk)
        elif not old.items:
            self.records.write(chunk)
        return chunk

    def _read(
        self, tasks: Sequence[Task], total: int
    ) -> Iterator[tuple[Task, int, Pair | Rejection | None]]:
        """The tasks with their numbers and what was read, in order."""
        numbers = []
        for task in tasks:
            known = task.item is not None and task.item.number >= 0
            numbers.append(task.item.number if task.item is not None and known else self._next)
            self._next += not known

        def read(task: Task, number: int) -> Pair | Rejection | None:
            if task.index is None or not task.reads:
                return None
            key = task.item.key if task.item is not None else None
            return read_pair(self.source, task.index, key or f"{number:09d}", self.options)

        with ThreadPoolExecutor(self.options.workers) as pool:
            results = pool.map(read, tasks, numbers)
            for task, number, result in zip(tasks, numbers, results, strict=True):
                yield task, number, result
                self._advance(1, total)

    def _settle(
        self, task: Task, number: int, result: Pair | Rejection | None
    ) -> tuple[Item | None, RawSample | None]:
        """What becomes of a pair: its record, if it stays, and its sample, if that is written."""
        item = task.item if task.item is not None and task.item.key is not None else None
        if task.index is None:
            return self._without_source(item), None
        name, stamp = task.name, task.stamp
        match result:
            case None:
                assert item is not None
                return item.model_copy(update={"name": name, "stamp": stamp}), None
            case Rejection():
                if item is not None and not self.options.update:
                    self._change("rejected now, kept", f"{name}: {result.detail}")
                    return item, None
                if item is not None:
                    self._change("removed", name)
                return Item(name=name, stamp=stamp, number=number, rejection=result), None
            case Pair(sample, content):
                new = Item(name=name, stamp=stamp, number=number, key=sample.key, content=content)
                if item is not None and item.content == content:
                    return new, None
                if task.item is None and (same := self._gone.get((content.image, content.rest))):
                    self._change("renamed", name)
                    gone = same.pop()
                    self._renamed[gone.number] = gone.model_copy(
                        update={"name": name, "stamp": stamp}
                    )
                    return None, None
                known = "accepted, rejected before" if task.item is not None else "added"
                self._change("changed" if item is not None else known, name)
                return new, sample

    def _without_source(self, item: Item | None) -> Item | None:
        """What becomes of a pair that the source no longer has; None: it was rejected before."""
        if item is None:
            return None
        if self.options.update:
            self._change("removed", item.name)
            return None
        content = item.content
        what = (content.image, content.rest) if content is not None else (item.name,)
        self._gone.setdefault(what, []).append(item)
        return item

    def _change(self, what: str, name: str) -> None:
        self.changes.append((what, name))

    def _with_new_names(self, chunk: Chunk) -> Chunk:
        if not self._renamed:
            return chunk
        items = (
            self._renamed.get(one.number, one) if one.key is not None else one
            for one in chunk.items
        )
        return chunk.model_copy(update={"items": tuple(items)})

    def _free_name(self, old: Chunk) -> tuple[str, int]:
        """A file name for the shard that no shard of the set has, and its revision."""
        revision = old.revision
        while (name := revised_name(self.options, old.number, revision)) in self._taken:
            revision += 1
        self._taken.add(name)
        return name, revision


def revised_name(options: PackOptions, number: int, revision: int) -> str:
    """The file name of a shard that was written `revision` times before."""
    name = shard_name(options.set_name, number, compress=options.compress)
    stem, dot, suffix = name.rpartition(".tar")
    return f"{stem}-r{revision}{dot}{suffix}" if revision else name


def _kept(url: str, shard: IndexedShard | None, keys: Container[str]) -> list[RawSample]:
    """Samples of a shard, read from the set after a comparison with its manifest.

    Raises:
        UserError: The shard is not what it was.
    """
    kept = [one for one in shard.samples if one.key in keys] if shard is not None else []
    if shard is None or not kept:
        return []
    path = storage.join(url, shard.name)
    with local_tar(path) as tar:
        if sha256_file(tar.stored) != shard.sha256:
            raise UserError(
                f"{path}: does not match its manifest; copy it here again, or delete {url} and "
                "pack again"
            )
        return [
            RawSample(
                one.key,
                {name: read_member(tar.plain, *at) for name, at in one.members.items()},
                one.attributes,
            )
            for one in kept
        ]
