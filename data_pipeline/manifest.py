"""``manifest.json``: what a shard set holds, byte for byte.

The tar reader of webdataset ends quietly at a truncation and skips a corrupt header; only a list
of what must be there notices. Everything is in one JSON file, about 300 bytes a sample: fit for
millions of samples, not for billions.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError

MANIFEST_NAME = "manifest.json"

Attribute = str | int | None
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]


class SampleEntry(BaseModel, frozen=True, extra="forbid"):
    """Where the members of one sample lie inside its shard."""

    key: str = Field(min_length=1)
    members: dict[str, tuple[int, int]]
    """Member extension (``png``, ``codes.npy``) to (byte offset, size in bytes)."""
    attributes: dict[str, Attribute] = {}
    """What selections choose by, so that choosing opens no shard."""


class ShardEntry(BaseModel, frozen=True, extra="forbid"):
    """One tar file of the set, plain (``.tar``) or compressed (``.tar.gz``)."""

    name: FileName
    bytes: int = Field(gt=0)
    sha256: Digest
    """Size and digest of the file as it is stored."""
    expanded_bytes: int | None = Field(default=None, gt=0)
    """Size of the plain tar inside a compressed shard."""
    samples: tuple[SampleEntry, ...]
    """Member offsets count from the start of the plain tar."""

    @property
    def tar_bytes(self) -> int:
        """Size of the plain tar."""
        return self.expanded_bytes or self.bytes


class Split(BaseModel, frozen=True, extra="forbid"):
    """A fixed division of (some of) the samples into training and test keys."""

    description: str
    train: tuple[str, ...]
    test: tuple[str, ...]

    def part(self, name: Literal["train", "test"]) -> tuple[str, ...]:
        """The keys of one part."""
        match name:
            case "train":
                return self.train
            case "test":
                return self.test


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """The contents of a shard set. Refuses repeated keys and splits that overlap or dangle."""

    format: Literal[1] = 1
    name: str
    fields: dict[str, str]
    """Member extension to a description for people."""
    licence: str
    provenance: dict[str, str]
    """How the set came to be: sources, versions, digests."""
    encoder: Digest | None = None
    """Digest of the model that made a derived set."""
    splits: dict[str, Split] = {}
    shards: tuple[ShardEntry, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        counts = Counter(sample.key for sample in self.samples())
        repeated = [key for key, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"key '{repeated[0]}' occurs more than once")
        for name, split in self.splits.items():
            train, test = set(split.train), set(split.test)
            if both := sorted(train & test):
                raise ValueError(f"split '{name}' has key '{both[0]}' in train and in test")
            if dangling := sorted((train | test) - counts.keys()):
                raise ValueError(f"split '{name}' names key '{dangling[0]}' that no shard holds")
        for shard in self.shards:
            for sample in shard.samples:
                for extension, (offset, size) in sample.members.items():
                    if offset < 0 or size < 0 or offset + size > shard.tar_bytes:
                        raise ValueError(
                            f"'{sample.key}.{extension}' lies outside shard '{shard.name}'"
                        )
        return self

    def splits_of(self, keys: Collection[str]) -> dict[str, Split]:
        """The splits with the samples ``keys`` alone."""
        return {
            name: Split(
                description=split.description,
                train=tuple(key for key in split.train if key in keys),
                test=tuple(key for key in split.test if key in keys),
            )
            for name, split in self.splits.items()
        }

    def samples(self) -> Iterator[SampleEntry]:
        """Every sample, shard after shard."""
        for shard in self.shards:
            yield from shard.samples

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the canonical JSON: equal sets on any storage have equal ones."""
        canonical = json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        )
        return sha256(canonical)


def read_manifest(url: str) -> Manifest:
    """The manifest of the shard set in directory ``url``.

    Raises:
        UserError: There is none, or it is not a valid manifest.
    """
    path = storage.join(url, MANIFEST_NAME)
    if not storage.exists(path):
        raise UserError(
            f"{path}: no such file; make it with `mezzotint data index {url}` for an existing "
            "tar set, or `mezzotint data pack` for anything else"
        )
    try:
        return Manifest.model_validate_json(storage.read_bytes(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UserError(f"{path}: {where}: {first['msg']}; index the set again") from error


def write_manifest(url: str, manifest: Manifest) -> None:
    """Write ``manifest`` into the shard set's directory ``url``, whole or not at all."""
    content = manifest.model_dump_json(indent=None).encode()
    storage.write_bytes(storage.join(url, MANIFEST_NAME), content + b"\n")
