"""Splits that follow from a hash of each sample alone, so that no other sample is needed."""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, Field

from data_pipeline.manifest import Part
from mezzotint.common.digests import sha256

RANDOM_SPLIT = "random"
"""The split that rules and fractions make."""

HashedPart = Literal["key", "caption", "image"]


class SplitRule(BaseModel, frozen=True, extra="forbid"):
    """Holds out about `fraction` of the keys, captions or images, by hash.

    Samples with the same caption, or the same image file, are in the same part.
    """

    by: HashedPart
    fraction: float = Field(gt=0, lt=1)

    @property
    def description(self) -> str:
        return f"{self.fraction:.1%} of the {self.by}s held out by hash"

    def part(self, digest: str) -> Part:
        """The part of a sample; `digest` is the hexadecimal SHA-256 of what is hashed."""
        return "test" if hashed(digest) < self.fraction else "train"


def hashed(digest: str) -> float:
    """A number in [0, 1) from a hexadecimal digest."""
    return int(digest[:16], 16) / 2**64


def captions_digest(digests: Iterable[str]) -> str:
    """The digest of a sample's captions, given those of each, in any order."""
    distinct = sorted(set(digests))
    return distinct[0] if len(distinct) == 1 else sha256("".join(distinct))
