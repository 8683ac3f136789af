"""Embeddings of CLIP: how networks see them, by statistics of a whole set, and what made them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from mezzotint.common.errors import UserError
from mezzotint.common.text_features import TEXT_EMBEDDING as TEXT_EMBEDDING

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_EMBEDDING = "image_embedding"
"""The array of a sample: (D,), the projection of its image by CLIP's image tower as it is."""

Normalization = Literal["openai_17.2", "mean_std", "l2_sqrt_d"]
"""`openai_17.2`: 17.2 times the direction (unCLIP, arXiv 2204.06125, as OpenAI's code has it);
`mean_std`: minus the mean, divided by the standard deviation of each dimension (Karlo);
`l2_sqrt_d`: the direction times the square root of D (DALLE2-pytorch)."""

OPENAI_SCALE = 17.2
_MEASURED = frozenset({"mean_std"})
"""Normalisations with statistics; the others are of directions."""


class EmbeddingScaling(BaseModel, frozen=True, extra="forbid"):
    """A normalisation of image embeddings (..., D), with its statistics."""

    kind: Normalization
    dim: int = Field(gt=0)
    """D."""
    samples: int = Field(gt=0)
    """Samples of the set."""
    mean: tuple[float, ...] | None = None
    """Of each dimension over the whole set, of `mean_std` alone."""
    std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.mean is not None, self.std is not None) != (self.kind in _MEASURED,) * 2:
            raise ValueError("mean and std belong to mean_std, which needs both")
        if self.mean is None or self.std is None:
            return self
        if len(self.mean) != self.dim or len(self.std) != self.dim:
            raise ValueError(f"mean and std need dim = {self.dim} values each")
        if not all(math.isfinite(each) for each in self.mean):
            raise ValueError("mean must be finite")
        if not all(math.isfinite(each) and each > 0 for each in self.std):
            raise ValueError("std must be finite and above 0")
        return self

    def normalize(self, embedding: "Tensor") -> "Tensor":
        """Projections of the image tower (..., D) to what networks read and generate.

        Raises:
            UserError: embeddings of another length.
        """
        self._require_dim(embedding)
        if self.mean is not None and self.std is not None:
            mean, std = embedding.new_tensor(self.mean), embedding.new_tensor(self.std)
            return (embedding - mean) / std
        norm = embedding.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return embedding / norm * self._length

    def denormalize(self, normalized: "Tensor") -> "Tensor":
        """The inverse; of a direction, which has lost its length, at unit length."""
        self._require_dim(normalized)
        if self.mean is not None and self.std is not None:
            mean, std = normalized.new_tensor(self.mean), normalized.new_tensor(self.std)
            return normalized * std + mean
        return normalized / self._length

    def uncentred(self, normalized: "Tensor") -> "Tensor":
        """Normalised vectors (..., D) of which 0 means a projection of 0, as it does of directions.

        Of `mean_std` these are the projections themselves.
        """
        return normalized if self.mean is None else self.denormalize(normalized)

    def equals(self, other: "EmbeddingScaling") -> bool:
        """Whether both give the same values."""
        return self.model_dump(exclude={"samples"}) == other.model_dump(exclude={"samples"})

    @property
    def _length(self) -> float:
        """Norm of a normalised direction."""
        return {"openai_17.2": OPENAI_SCALE, "l2_sqrt_d": math.sqrt(self.dim)}[self.kind]

    def _require_dim(self, embedding: "Tensor") -> None:
        if embedding.shape[-1] != self.dim:
            raise UserError(
                f"embeddings have {embedding.shape[-1]} values and their normalisation is of "
                f"{self.dim}; take the CLIP that the model was trained with"
            )


@dataclass(frozen=True)
class EmbeddingMoments:
    """Statistics of the embeddings of a part of a set, in float64.

    Parts are merged exactly (Chan et al. 1979).
    """

    samples: int
    mean: NDArray[np.float64]
    """(D,)."""
    squares: NDArray[np.float64]
    """(D,): sums of the squared differences from the mean."""

    @classmethod
    def none(cls, dim: int) -> Self:
        """Of no samples."""
        return cls(0, np.zeros(dim), np.zeros(dim))

    @classmethod
    def of(cls, embeddings: NDArray[np.generic]) -> "EmbeddingMoments":
        """Of embeddings (B, D)."""
        return cls.none(embeddings.shape[1]).with_rows(embeddings)

    def with_rows(self, embeddings: NDArray[np.generic]) -> "EmbeddingMoments":
        """With those of embeddings (B, D) that follow.

        They are added one by one: how many are passed together does not change a bit.
        """
        found = self
        for row in np.asarray(embeddings, dtype=np.float64):
            found = found + EmbeddingMoments(1, row, np.zeros_like(row))
        return found

    def __add__(self, other: "EmbeddingMoments") -> "EmbeddingMoments":
        """The statistics of both parts together."""
        samples = self.samples + other.samples
        if samples == 0:
            return self
        apart, share = other.mean - self.mean, other.samples / samples
        squares = self.squares + other.squares + np.square(apart) * (self.samples * share)
        return EmbeddingMoments(samples, self.mean + apart * share, squares)

    def scaling(self, kind: Normalization, name: str) -> EmbeddingScaling:
        """The normalisation of the set that messages call `name`.

        Raises:
            UserError: a dimension has the same value in all samples, by which cannot be divided.
        """
        dim = len(self.mean)
        if kind not in _MEASURED:
            return EmbeddingScaling(kind=kind, dim=dim, samples=self.samples)
        variance = self.squares / max(self.samples, 1)
        equal = np.flatnonzero(~(variance > 0))
        if len(equal):
            raise UserError(
                f"{name}: dimension {equal[0]} of the image embeddings has one value in all "
                f"{self.samples:,} samples, so mean_std cannot divide by its deviation; take "
                "another normalisation, or more samples"
            )
        return EmbeddingScaling(
            kind=kind,
            dim=dim,
            samples=self.samples,
            mean=tuple(self.mean.tolist()),
            std=tuple(np.sqrt(variance).tolist()),
        )


class EmbeddingRecord(BaseModel, frozen=True, extra="forbid"):
    """The CLIP whose embeddings a set holds or a network reads or generates."""

    model: str = Field(min_length=1)
    """Its model directory, or the checkpoint of an open_clip model."""
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the model and of how it takes images."""
    scaling: EmbeddingScaling
    weights: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of an open_clip checkpoint the SHA-256 of its weights alone."""

    @property
    def text_digest(self) -> str:
        """The digest of its text tower, as frozen text encoders have it."""
        return self.weights or self.digest


def require_equal_embeddings(records: Mapping[str, EmbeddingRecord | None]) -> None:
    """Refuse models or sets that work together on embeddings of another CLIP or normalisation.

    `records` are theirs by name.

    Raises:
        UserError: one has no record, or two differ, with both values.
    """
    for name, record in records.items():
        if record is None:
            raise UserError(
                f"{name}: records no CLIP embeddings; give a model that was trained on a set of "
                "them, made by `mezzotint data derive SET OUT --clip MODEL`"
            )
    known = [(name, record) for name, record in records.items() if record is not None]
    for name, record in known[1:]:
        first_name, first = known[0]
        if record.digest != first.digest:
            raise UserError(
                f"{first_name} is of the embeddings of the CLIP {first.digest[:12]} "
                f"({first.model}) and {name} of those of {record.digest[:12]} ({record.model}); "
                "choose models of one CLIP, or train one of them again"
            )
        if not record.scaling.equals(first.scaling):
            raise UserError(
                f"{first_name} normalises embeddings by {described(first.scaling)} and {name} by "
                f"{described(record.scaling)}; choose models of one normalisation, or train one "
                "of them again"
            )


def require_clip(record: EmbeddingRecord, digest: str, where: str, name: str) -> None:
    """Refuse a CLIP of another digest, called `where`, than that of the model called `name`.

    Raises:
        UserError: with both digests.
    """
    if record.digest != digest:
        raise UserError(
            f"{where}: is the CLIP {digest[:12]}, but {name} is of the embeddings of "
            f"{record.digest[:12]} ({record.model}); give that one"
        )


def described(scaling: EmbeddingScaling) -> str:
    """A normalisation in a message."""
    if scaling.mean is None or scaling.std is None:
        return scaling.kind
    mean, std = np.mean(scaling.mean), np.mean(scaling.std)
    return f"mean_std (of {scaling.samples:,} samples: mean {mean:.6g}, deviation {std:.6g})"
