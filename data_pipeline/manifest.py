"""`manifest.json`: what a shard set is, and its shards by file, size, digest and counts.

It lists shards only, as columns, so that a set of 250 million samples opens like one of a thousand.
What a shard holds is in an index beside it (`sets/shard_index.py`), whose digest is here.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, model_validator

from mezzotint.common.digests import sha256
from mezzotint.common.embedding_scaling import EmbeddingRecord
from mezzotint.common.hint import Detector
from mezzotint.common.latent_scaling import LatentScaling
from mezzotint.common.preprocessing import Preprocessing
from mezzotint.common.text_features import TextFeatureRecord

MANIFEST_NAME = "manifest.json"
INDEX_SUFFIX = ".index.npz"
LISTED_VALUES = 1024
"""Distinct values of an attribute that a manifest counts, at most."""

Attribute = str | int | None
Part = Literal["train", "test"]
"""Of a split."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]


class SampleEntry(BaseModel, frozen=True, extra="forbid"):
    """The position of one sample inside its shard."""

    key: str = Field(min_length=1)
    members: dict[str, tuple[int, int]]
    """Member extension (`png`, `codes.npy`) to (byte offset, size in bytes)."""
    attributes: dict[str, Attribute] = {}
    """Values to select by, without opening a shard."""


@dataclass(frozen=True)
class ShardEntry:
    """One tar file of the set, perhaps compressed (`.tar.gz`)."""

    name: str
    bytes: int
    sha256: str
    """Of the file as stored."""
    expanded_bytes: int | None
    """Size of the uncompressed tar, for a compressed shard."""
    samples: int
    """Their number."""
    index: str | None
    """SHA-256 of the index; None where the manifest holds the samples (format 1)."""

    @property
    def tar_bytes(self) -> int:
        """Size of the uncompressed tar."""
        return self.expanded_bytes or self.bytes

    @property
    def index_name(self) -> str:
        """The file of the index; another index has another name, so that none is overwritten."""
        assert self.index is not None, "a set of format 1 has no indexes beside its shards"
        return f"{self.name.partition('.tar')[0]}.{self.index[:16]}{INDEX_SUFFIX}"


class ShardColumns(BaseModel, frozen=True, extra="forbid"):
    """The shards of a set, a column for each field of `ShardEntry`."""

    name: tuple[FileName, ...]
    bytes: tuple[PositiveInt, ...]
    sha256: tuple[Digest, ...]
    expanded_bytes: tuple[PositiveInt | None, ...] | None = None
    """None: no shard is compressed."""
    samples: tuple[NonNegativeInt, ...]
    index: tuple[Digest, ...] | None = None

    @classmethod
    def of(cls, shards: Sequence[ShardEntry]) -> Self:
        compressed = any(one.expanded_bytes is not None for one in shards)
        digests = [one.index for one in shards if one.index is not None]
        return cls(
            name=tuple(one.name for one in shards),
            bytes=tuple(one.bytes for one in shards),
            sha256=tuple(one.sha256 for one in shards),
            expanded_bytes=tuple(one.expanded_bytes for one in shards) if compressed else None,
            samples=tuple(one.samples for one in shards),
            index=tuple(digests) if digests else None,
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for column in (self.bytes, self.sha256, self.expanded_bytes, self.samples, self.index):
            if column is not None and len(column) != len(self.name):
                raise ValueError(f"a column has {len(column)} of {len(self.name)} shards")
        if len(set(self.name)) != len(self.name):
            repeated = next(one for one in self.name if self.name.count(one) > 1)
            raise ValueError(f"shard '{repeated}' is listed twice")
        return self


class Shards(Sequence[ShardEntry]):
    """The shards of a set in its order; an entry is made when it is asked for."""

    def __init__(self, columns: ShardColumns) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns.name)

    @overload
    def __getitem__(self, number: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, number: slice) -> tuple[ShardEntry, ...]: ...
    def __getitem__(self, number: int | slice) -> ShardEntry | tuple[ShardEntry, ...]:
        if isinstance(number, slice):
            return tuple(self[one] for one in range(*number.indices(len(self))))
        columns = self._columns
        return ShardEntry(
            columns.name[number],
            columns.bytes[number],
            columns.sha256[number],
            columns.expanded_bytes[number] if columns.expanded_bytes is not None else None,
            columns.samples[number],
            columns.index[number] if columns.index is not None else None,
        )

    def __iter__(self) -> Iterator[ShardEntry]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shards) and self._columns == other._columns

    __hash__ = None  # type: ignore[assignment]


class SplitCounts(BaseModel, frozen=True, extra="forbid"):
    """A fixed division of (some of) the samples into training and test samples."""

    description: str
    train: tuple[NonNegativeInt, ...]
    """Training samples of each shard."""
    test: tuple[NonNegativeInt, ...]

    def of(self, part: Part) -> NDArray[np.int64]:
        """The samples of a part in each shard, (S,)."""
        return np.asarray(self.train if part == "train" else self.test, dtype=np.int64)


class AttributeCounts(BaseModel, frozen=True, extra="forbid"):
    """The values of an attribute, with the number of samples that have each."""

    samples: NonNegativeInt
    """Those that have a value other than None."""
    values: tuple[tuple[str | int, PositiveInt], ...] | None = None
    """In order of their first occurrence; None: there are more than `LISTED_VALUES`."""


class SetRecord(BaseModel, frozen=True, extra="forbid"):
    """What a set is, but for its shards and splits."""

    name: str
    fields: dict[str, str]
    """Member extension to a description."""
    licence: str
    provenance: dict[str, str]
    """Sources, versions and digests."""
    encoder: Digest | None = None
    """Digest of the model that encoded a derived set."""
    preprocessing: Preprocessing | None = None
    """Of the images that were encoded; None in sets of images and of earlier versions."""
    detector: Detector | None = None
    """What made the hints of a derived set."""
    text_features: TextFeatureRecord | None = None
    """Of a set of text features: what made them."""
    latents: LatentScaling | None = None
    """Measured over all latents of a derived set; no part of its fingerprint, as it follows from
    the shards."""
    embeddings: EmbeddingRecord | None = None
    """Of a set of CLIP embeddings: the CLIP, and their normalisation, measured over all of them."""
    empty_text_embedding: tuple[float, ...] | None = None
    """Of such a set: the text embedding (D,) of an empty caption."""
    format_1_fingerprint: Digest | None = None
    """Of a set that is, or was, of format 1: its fingerprint, to which runs refer."""

    def record_fields(self) -> dict[str, Any]:
        """These fields alone, by name."""
        return {name: getattr(self, name) for name in SetRecord.model_fields}


class Manifest(SetRecord, frozen=True):
    """A shard set."""

    format: Literal[2] = 2
    location: str | None = None
    """URL of the directory with the shards, where it is not that of the manifest."""
    members: dict[str, PositiveInt]
    """Member extension to the number of samples that have it."""
    attributes: dict[str, AttributeCounts] = Field(default_factory=dict)
    splits: dict[str, SplitCounts] = Field(default_factory=dict)
    shard_columns: ShardColumns

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        samples = np.asarray(self.shard_columns.samples)
        for name, split in self.splits.items():
            if not len(split.train) == len(split.test) == len(samples):
                raise ValueError(f"split '{name}' does not count the samples of every shard")
            if (split.of("train") + split.of("test") > samples).any():
                raise ValueError(f"split '{name}' counts more samples than a shard has")
        return self

    @cached_property
    def shards(self) -> Shards:
        return Shards(self.shard_columns)

    @cached_property
    def shard_sizes(self) -> NDArray[np.int64]:
        """The number of samples in each shard, (S,)."""
        return np.asarray(self.shard_columns.samples, dtype=np.int64)

    @cached_property
    def shard_ends(self) -> NDArray[np.int64]:
        """One more than the number in the set of each shard's last sample, (S,)."""
        return np.cumsum(self.shard_sizes)

    @cached_property
    def shard_starts(self) -> NDArray[np.int64]:
        """The number in the set of each shard's first sample, (S,)."""
        return self.shard_ends - self.shard_sizes

    def place_of(self, number: int) -> tuple[int, int]:
        """The shard of a sample, and its row there."""
        shard = int(np.searchsorted(self.shard_ends, number, side="right"))
        return shard, number - int(self.shard_starts[shard])

    @property
    def sample_count(self) -> int:
        return sum(self.shard_columns.samples)

    @property
    def bytes(self) -> int:
        return sum(self.shard_columns.bytes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the set is and of its shards' and indexes' digests.

        It does not depend on where the set is stored, nor on what was measured of it later.
        """
        if self.format_1_fingerprint is not None:
            return self.format_1_fingerprint
        tree = self.model_dump(
            mode="json",
            exclude={"location", "latents", "empty_text_embedding"},
            exclude_none=True,
        )
        if self.embeddings is not None:
            del tree["embeddings"]["model"]  # where it lies
        canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return sha256(canonical)


@dataclass(frozen=True)
class Measured:
    """What is known of a derived set when all of its samples are written: fields of `Manifest`."""

    latents: LatentScaling | None = None
    embeddings: EmbeddingRecord | None = None
    empty_text_embedding: tuple[float, ...] | None = None
