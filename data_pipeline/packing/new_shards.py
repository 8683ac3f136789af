"""Writing shards of pairs that were not packed before, in several processes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.reading import Pair, read_pair
from data_pipeline.packing.records import Chunk, Item
from data_pipeline.packing.report import Rejection
from data_pipeline.packing.shard_writer import shard_name, write_shard
from data_pipeline.packing.source import Source
from data_pipeline.packing.sources import open_source
from mezzotint.common.errors import UserError
from mezzotint.common.process_pool import map_in_processes

SHARDS_PER_PROCESS = 4


@dataclass(frozen=True)
class NewChunk:
    """Pairs of a source that become a shard."""

    number: int
    """Of the shard."""
    first: int
    """The number of its first pair."""
    pairs: tuple[tuple[int, str, str], ...]
    """Index in the source, name and stamp of each."""


def write_chunk(
    source: Source,
    out: str,
    chunk: NewChunk,
    options: PackOptions,
    advance: Callable[[], None] | None = None,
) -> Chunk:
    """Write the shard of valid pairs; `advance` is called after every pair.

    Raises:
        UserError: The source cannot be read, or the shard not be written.
    """

    def read(place: int) -> Pair | Rejection:
        return read_pair(source, chunk.pairs[place][0], f"{chunk.first + place:09d}", options)

    items, samples = [], []
    with _threads(options.workers) as each:
        for place, result in enumerate(each(read, range(len(chunk.pairs)))):
            _, name, stamp = chunk.pairs[place]
            number = chunk.first + place
            match result:
                case Rejection():
                    items.append(Item(name=name, stamp=stamp, number=number, rejection=result))
                case Pair(sample, content):
                    items.append(
                        Item(name=name, stamp=stamp, number=number, key=sample.key, content=content)
                    )
                    samples.append(sample)
            if advance is not None:
                advance()
    file = shard_name(options.set_name, chunk.number, compress=options.compress)
    shard = write_shard(samples, out, file, compress=options.compress) if samples else None
    return Chunk(number=chunk.number, shard=shard, items=tuple(items))


@contextmanager
def _threads(count: int) -> Iterator[Callable[..., Iterator[Pair | Rejection]]]:
    """`map` by so many threads; one is this one."""
    if count == 1:
        yield map
        return
    with ThreadPoolExecutor(count) as pool:
        yield pool.map


def write_chunks(
    src: str,
    source: Source,
    out: str,
    chunks: Sequence[NewChunk],
    options: PackOptions,
    processes: int,
) -> Iterator[Chunk]:
    """Write shards in several processes, which may open `src` again; in any order.

    Raises:
        UserError: As `write_chunk`, or the source changed meanwhile.
    """
    opening = _Opening(src, out, options, source.identity, source if source.is_picklable else None)
    for _, written in map_in_processes(_write, opening, chunks, processes):
        yield Chunk.model_validate_json(written)


@dataclass(frozen=True)
class _Opening:
    """What a process of `write_chunks` opens when it writes its first shard."""

    src: str
    out: str
    options: PackOptions
    identity: str
    """Of the source as the first process has found it."""
    sent: Source | None
    """The source, where it can be sent."""

    @cached_property
    def source(self) -> Source:
        if self.sent is not None:
            return self.sent
        source = open_source(self.src, self.options)
        if source.identity != self.identity:
            raise UserError(
                f"{self.src}: has changed since it was listed; repeat the command once nothing "
                "writes there"
            )
        return source


def _write(opening: _Opening, chunk: NewChunk) -> str:
    """The chunk as JSON, which takes a tenth of the time of pickling its models."""
    return write_chunk(opening.source, opening.out, chunk, opening.options).model_dump_json()
