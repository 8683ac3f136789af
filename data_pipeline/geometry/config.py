"""Settings of crops and of aspect-ratio buckets."""

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

Position = Literal["centre", "near_centre", "random"]


class CropConfig(BaseModel, frozen=True, extra="forbid"):
    """Which part of an image training reads, keyed by (seed, epoch, sample).

    The largest part of the wanted shape is cut at `position`, then resized to a side drawn between
    the two multiples of `size` in `resize`, and of that a random part of `size` is cut. A side is
    never above that of the first part, so that this enlarges nothing, nor below `size`. DALL-E
    (Ramesh et al. 2021, appendices A.1 and B.1) trains its dVAE with `random` and [1.125, 1.5] and
    mirrors, and its prior with `near_centre` and [1, 1.125] and does not, both with the filter
    `box`.
    """

    position: Position = "random"
    """`random` anywhere, `near_centre` between 3/8 and 5/8 of what is cut off, `centre` at 1/2."""
    resize: tuple[float, float] = (1.0, 1.0)

    @model_validator(mode="after")
    def _range(self) -> Self:
        low, high = self.resize
        if not 1 <= low <= high <= 8:
            raise ValueError(f"resize [{low:g}, {high:g}]: give two numbers, 1 <= low <= high <= 8")
        return self


class BucketConfig(BaseModel, frozen=True, extra="forbid"):
    """Aspect-ratio buckets: training reads an image in the shape nearest to its own.

    Shapes have sides that are multiples of `multiple`, at most `size`^2 pixels, and a longer side
    of at most `max_aspect` times the shorter. All images of a batch have the same shape.
    """

    multiple: int = Field(default=64, gt=0)
    """Of the sides, in pixels; a multiple of what the network divides them by."""
    max_aspect: float = Field(default=2.0, ge=1.0, le=16.0)
    window: int = Field(default=16, gt=0)
    """Blocks of shards (`data.shuffle_block`) after which what is left of the buckets fills batches
    together: many move few images to another shape, and the cache must hold their shards."""
