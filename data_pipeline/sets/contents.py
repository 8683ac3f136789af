"""The whole contents of a set in memory, for those who write sets sample by sample.

It is also the manifest of format 1, which listed every sample.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from data_pipeline.manifest import (
    Digest,
    FileName,
    Part,
    SampleEntry,
    SetRecord,
    ShardEntry,
)
from data_pipeline.sets.shard_index import ShardIndex
from mezzotint.common.digests import sha256


class IndexedShard(BaseModel, frozen=True, extra="forbid"):
    """One tar file of the set, perhaps compressed (`.tar.gz`), with its samples."""

    name: FileName
    bytes: int = Field(gt=0)
    sha256: Digest
    """Of the file as stored."""
    expanded_bytes: int | None = Field(default=None, gt=0)
    """Size of the uncompressed tar, for a compressed shard."""
    samples: tuple[SampleEntry, ...]
    """Member offsets are in the uncompressed tar."""

    @property
    def tar_bytes(self) -> int:
        """Size of the uncompressed tar."""
        return self.expanded_bytes or self.bytes

    def entry(self) -> ShardEntry:
        """Its entry in a manifest, without an index."""
        return ShardEntry(
            self.name, self.bytes, self.sha256, self.expanded_bytes, len(self.samples), None
        )


class Split(BaseModel, frozen=True, extra="forbid"):
    """A fixed division of (some of) the samples into training and test samples, by key."""

    description: str
    train: tuple[str, ...]
    test: tuple[str, ...]

    def restricted(self, keys: Collection[str]) -> "Split":
        """The split of the samples `keys` alone."""
        return Split(
            description=self.description,
            train=tuple(key for key in self.train if key in keys),
            test=tuple(key for key in self.test if key in keys),
        )

    def parts(self) -> dict[str, Part]:
        """The part of every key."""
        train: dict[str, Part] = dict.fromkeys(self.train, "train")
        return {**train, **dict.fromkeys(self.test, "test")}


class SetContents(SetRecord, frozen=True):
    """The contents of a shard set; keys are unique, splits disjoint and of existing keys."""

    format: Literal[1] = 1
    splits: dict[str, Split] = Field(default_factory=dict)
    shards: tuple[IndexedShard, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        counts = Counter(sample.key for sample in self.samples())
        repeated = [key for key, count in counts.items() if count > 1]
        if repeated:
            holders = [
                shard.name
                for shard in self.shards
                for sample in shard.samples
                if sample.key == repeated[0]
            ]
            where = " and ".join(dict.fromkeys(holders[:2]))
            raise ValueError(f"key '{repeated[0]}' occurs more than once, in {where}")
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
                            f"'{sample.key}.{extension}' is outside of shard '{shard.name}'"
                        )
        return self

    def splits_of(self, keys: Collection[str]) -> dict[str, Split]:
        """The splits, restricted to the samples `keys`."""
        return {name: split.restricted(keys) for name, split in self.splits.items()}

    @property
    def descriptions(self) -> dict[str, str]:
        """Of the splits."""
        return {name: split.description for name, split in self.splits.items()}

    def indexes(self) -> Iterator[ShardIndex]:
        """Of every shard."""
        parts = {name: split.parts() for name, split in self.splits.items()}
        for shard in self.shards:
            columns = {
                name: [part.get(one.key) for one in shard.samples] for name, part in parts.items()
            }
            yield ShardIndex.of(shard.samples, columns)

    def samples(self) -> Iterator[SampleEntry]:
        for shard in self.shards:
            yield from shard.samples

    def located_samples(self) -> list[tuple[int, SampleEntry]]:
        """Every sample with the index of its shard."""
        return [(index, one) for index, shard in enumerate(self.shards) for one in shard.samples]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of format 1."""
        tree = self.model_dump(mode="json", exclude={"format_1_fingerprint"})
        if self.preprocessing is None:
            del tree["preprocessing"]  # sets of earlier versions keep their fingerprint
        if self.detector is None:
            del tree["detector"]
        if self.text_features is None:
            del tree["text_features"]
        elif self.text_features.empty_tokens is None:
            del tree["text_features"]["empty_tokens"]
        if self.embeddings is None:
            del tree["embeddings"]
        else:
            del tree["embeddings"]["model"]  # where it lies
        del tree["empty_text_embedding"]  # it follows from the model
        del tree["latents"]  # so a set that is measured later stays the same set
        canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return sha256(canonical)
