"""The shards of a set that is being written, so that an interrupted call goes on after them."""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ValidationError

from data_pipeline.manifest import ShardEntry
from data_pipeline.sets.shard_index import ShardIndex
from mezzotint.common import storage
from mezzotint.common.digests import sha256, sha256_file
from mezzotint.common.errors import UserError

_DIRECTORY = ".derive"


class _Record(BaseModel, frozen=True, extra="forbid"):
    plan: str
    shard: ShardEntry


class ShardJournal:
    """A file for every shard that is written, until the manifest is.

    `plan` is the digest of what the shards depend on: those of another plan are not known.
    """

    def __init__(self, url: str, plan: str) -> None:
        self._url = url
        self._plan = plan

    @cached_property
    def finished(self) -> list[tuple[ShardEntry, ShardIndex]]:
        """The first shards of the set that were there, as they were written, when first asked."""
        directory = storage.join(self._url, _DIRECTORY)
        there = storage.sizes(directory) if storage.exists(directory) else {}
        found: list[tuple[ShardEntry, ShardIndex]] = []
        while (name := self._name(len(found))) in there:
            content = storage.read_bytes(storage.join(directory, name))
            known = self._known(content)
            if known is None:
                break
            found.append(known)
        return found

    def _known(self, content: bytes) -> tuple[ShardEntry, ShardIndex] | None:
        try:
            record = _Record.model_validate_json(content)
            index = storage.read_bytes(storage.join(self._url, record.shard.index_name))
            digest = _digest(storage.join(self._url, record.shard.name))
        except (ValidationError, UserError):
            return None
        same = (self._plan, record.shard.index) == (record.plan, sha256(index))
        if not same or digest != record.shard.sha256:
            return None
        return record.shard, ShardIndex.from_bytes(index, record.shard.index_name)

    def write(self, number: int, shard: ShardEntry) -> None:
        """Record the shard of this number."""
        record = {"plan": self._plan, "shard": asdict(shard)}
        path = storage.join(storage.join(self._url, _DIRECTORY), self._name(number))
        storage.write_bytes(path, _Record.model_validate(record).model_dump_json().encode())

    def end(self) -> None:
        """Delete the files."""
        directory = storage.join(self._url, _DIRECTORY)
        if storage.exists(directory):
            storage.remove_tree(directory)

    @staticmethod
    def _name(number: int) -> str:
        return f"{number:06d}.json"


def _digest(url: str) -> str:
    if storage.is_local(url):
        path: Path = storage.local_path(url)
        return sha256_file(path) if path.is_file() else ""
    return sha256(storage.read_bytes(url))
