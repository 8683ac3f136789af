"""What packing remembers of a set: every sample or rejected pair with its place in the source.

A finished set has it in `packed.jsonl`, an unfinished one in a journal with a file per shard.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ValidationError

from data_pipeline.images import ImageNote
from data_pipeline.manifest import MANIFEST_NAME
from data_pipeline.packing.report import Rejection
from data_pipeline.packing.source import shown_name
from data_pipeline.sets.contents import IndexedShard, SetContents
from data_pipeline.sets.stored_set import read_contents
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import NotFoundError

PACKED_NAME = "packed.jsonl"
REJECTED_NAME = "rejected.jsonl"
LISTS = (PACKED_NAME, REJECTED_NAME)
"""Files of a finished set beside its shards and manifest."""

_JOURNAL = ".pack"
"""Directory of the unfinished set that records finished shards."""


class Content(BaseModel, frozen=True):
    """Digests of a packed sample."""

    image: str | None
    captions: tuple[str, ...]
    """Each without differences of case, spaces and Unicode forms."""
    left_out: int = 0
    """Further captions of the source."""
    rest: str
    """Of the exact captions, the attributes and other members."""
    size: tuple[int, int] | None
    """Width and height of the image in pixels."""
    notes: tuple[ImageNote, ...] = ()
    """What is done to show the image."""


class Item(BaseModel, frozen=True):
    """A pair of the source as it was packed or rejected."""

    name: str
    stamp: str
    """What was known of its content without reading it."""
    number: int
    """Of the order in which pairs were first seen."""
    key: str | None = None
    """In the set, if it was packed."""
    content: Content | None = None
    rejection: Rejection | None = None
    """If it was rejected."""


class Chunk(BaseModel, frozen=True):
    """The pairs of one shard, with the rejected ones."""

    number: int
    revision: int = 0
    """How many times the shard was written before."""
    shard: IndexedShard | None
    """None if all pairs were rejected."""
    items: tuple[Item, ...]


class Records:
    """The records of a set, finished or not.

    Raises:
        UserError: The set was packed from something else or with other options.
    """

    def __init__(self, url: str, plan: str) -> None:
        self._url = url
        self.contents: SetContents | None = None
        """Of a finished set."""
        chunks: dict[int, Chunk] = {}
        if storage.exists(storage.join(url, MANIFEST_NAME)):
            self.contents = read_contents(url)
            if self.contents.provenance.get("plan") != plan:
                raise UserError(
                    f"{url}: holds a finished set of another source or other options; choose "
                    "another directory or delete it"
                )
            chunks = {one.number: one for one in _packed(url, self.contents)}
        self.plan = plan
        self.begun = self._read_plan(plan)
        if self.begun:
            for name in storage.sizes(self._journal):
                if name != "plan":
                    chunk = Chunk.model_validate_json(storage.read_bytes(self._record(name)))
                    chunks[chunk.number] = chunk
        self.chunks = [chunks[number] for number in sorted(chunks)]

    @property
    def _journal(self) -> str:
        return storage.join(self._url, _JOURNAL)

    def _record(self, name: str) -> str:
        return storage.join(self._journal, name)

    def _read_plan(self, plan: str) -> bool:
        path = self._record("plan")
        if not storage.exists(path):
            return False
        if storage.read_bytes(path).decode() != plan:
            raise UserError(
                f"{self._url}: holds an unfinished set of another source or other options; repeat "
                f"that command, or delete {self._journal} and its shards"
            )
        return True

    def begin(self) -> None:
        """Make the journal; the directory of a new set holds nothing that would be overwritten.

        Raises:
            UserError: It holds files of something else.
        """
        self.begun = self.begun or self._read_plan(self.plan)  # perhaps by another node just now
        if not self.begun:
            self._check_empty()
            storage.write_bytes(self._record("plan"), self.plan.encode())
            self.begun = True

    def _check_empty(self) -> None:
        if self.contents is not None:
            return
        try:
            there = [name for name in sorted(storage.sizes(self._url)) if name[0] != "."]
        except NotFoundError:
            return
        if others := [name for name in there if name != REJECTED_NAME]:
            raise UserError(
                f"{self._url}: holds files of something else ({shown_name(others[0])}, "
                f"{len(others):,} in all); give a directory that is new or empty"
            )

    def write(self, chunk: Chunk) -> None:
        """Record a finished shard."""
        self.begin()
        content = chunk.model_dump_json().encode()
        storage.write_bytes(self._record(f"{chunk.number:06d}.json"), content)

    def write_lists(self, chunks: Iterable[Chunk]) -> tuple[Rejection, ...]:
        """Write `packed.jsonl` and `rejected.jsonl`, unless they are as they should be.

        Returns:
            The rejected pairs.
        """
        chunks = list(chunks)
        rejected = tuple(
            item.rejection for chunk in chunks for item in chunk.items if item.rejection is not None
        )
        packed = "".join(_line(chunk) + "\n" for chunk in chunks)
        lines = "".join(one.model_dump_json() + "\n" for one in rejected)
        for name, content in zip(LISTS, (packed.encode(), lines.encode()), strict=True):
            path = storage.join(self._url, name)
            if self.contents is None or not _is(path, content):
                storage.write_bytes(path, content)
        return rejected

    def end(self) -> None:
        """Delete the journal."""
        if self.begun:
            storage.remove_tree(self._journal)


def _is(path: str, content: bytes) -> bool:
    return storage.exists(path) and storage.read_bytes(path) == content


def _line(chunk: Chunk) -> str:
    return chunk.model_dump_json(exclude={"shard"}, exclude_defaults=True)


def _packed(url: str, contents: SetContents) -> list[Chunk]:
    """The chunks of a finished set with these contents."""
    path = storage.join(url, PACKED_NAME)
    lines = storage.read_bytes(path).splitlines() if storage.exists(path) else []
    try:
        records = [Chunk.model_validate({**json.loads(line), "shard": None}) for line in lines]
    except (ValueError, ValidationError) as error:
        raise UserError(
            f"{path}: not readable; copy it again, or delete the directory and pack again"
        ) from error
    shard_of = {one.key: shard for shard in contents.shards for one in shard.samples}
    taken: set[str] = set()
    chunks = []
    for record in records:
        items = [one for one in record.items if one.key is None or one.key in shard_of]
        names = Counter(shard_of[one.key].name for one in items if one.key is not None)
        shard = next((one for one in contents.shards if one.name in names), None)
        items = [one for one in items if one.key is None or shard_of[one.key] is shard]
        if shard is not None:
            taken.add(shard.name)
            items += _unknown(shard, items)
        chunks.append(record.model_copy(update={"shard": shard, "items": tuple(items)}))
    number = max((one.number for one in chunks), default=-1) + 1
    for shard in contents.shards:
        if shard.name not in taken:
            chunks.append(Chunk(number=number, shard=shard, items=tuple(_unknown(shard, ()))))
            number += 1
    return chunks


def _unknown(shard: IndexedShard, items: Sequence[Item]) -> list[Item]:
    """Samples of a shard that were put there by something else."""
    known = {one.key for one in items}
    return [
        Item(name=one.key, stamp="", number=-1, key=one.key)
        for one in shard.samples
        if one.key not in known
    ]
