"""`manifest.json`: the contents of a shard set, by file, offset and digest.

webdataset's tar reader ends silently at a truncation and skips a corrupt header; a list of the
contents makes them errors. It is one JSON file of about 300 bytes per sample, which suits millions
of samples, not billions.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from mezzotint.common import storage
from mezzotint.common.digests import sha256
from mezzotint.common.embedding_scaling import EmbeddingRecord
from mezzotint.common.errors import UserError
from mezzotint.common.hint import Detector
from mezzotint.common.latent_scaling import LatentScaling
from mezzotint.common.preprocessing import Preprocessing
from mezzotint.common.storage_errors import NotFoundError
from mezzotint.common.text_features import TextFeatureRecord

MANIFEST_NAME = "manifest.json"

Attribute = str | int | None
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=200)]


class SampleEntry(BaseModel, frozen=True, extra="forbid"):
    """The position of one sample inside its shard."""

    key: str = Field(min_length=1)
    members: dict[str, tuple[int, int]]
    """Member extension (`png`, `codes.npy`) to (byte offset, size in bytes)."""
    attributes: dict[str, Attribute] = {}
    """Values to select by, without opening a shard."""


class ShardEntry(BaseModel, frozen=True, extra="forbid"):
    """One tar file of the set, perhaps compressed (`.tar.gz`)."""

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


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """The contents of a shard set; keys are unique, splits disjoint and of existing keys."""

    format: Literal[1] = 1
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
    splits: dict[str, Split] = {}
    shards: tuple[ShardEntry, ...]

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

    def samples(self) -> Iterator[SampleEntry]:
        for shard in self.shards:
            yield from shard.samples

    def located_samples(self) -> list[tuple[int, SampleEntry]]:
        """Every sample with the index of its shard."""
        return [(index, one) for index, shard in enumerate(self.shards) for one in shard.samples]

    @property
    def sample_count(self) -> int:
        return sum(len(shard.samples) for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON; it does not depend on where the set is stored."""
        tree = self.model_dump(mode="json")
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


@dataclass(frozen=True)
class Measured:
    """What is known of a derived set when all of its samples are written: fields of `Manifest`."""

    latents: LatentScaling | None = None
    embeddings: EmbeddingRecord | None = None
    empty_text_embedding: tuple[float, ...] | None = None


def read_manifest(url: str) -> Manifest:
    """Read the manifest of the shard set in the directory `url`.

    Raises:
        UserError: There is none, or it is not valid.
    """
    path = storage.join(url, MANIFEST_NAME)
    try:
        return Manifest.model_validate_json(storage.read_bytes(path))
    except NotFoundError as error:
        raise UserError(
            f"{error}; make it with `mezzotint data index {url}` for an existing tar set, or "
            "`mezzotint data pack` for anything else"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UserError(
            f"{path}: {where}: {first['msg']}; index the set again with `mezzotint data "
            f"index {url}`, which keeps what is valid of it"
        ) from error


def write_manifest(url: str, manifest: Manifest) -> None:
    """Write the manifest of the shard set in the directory `url`, whole or not at all."""
    content = manifest.model_dump_json(indent=None).encode()
    storage.write_bytes(storage.join(url, MANIFEST_NAME), content + b"\n")
