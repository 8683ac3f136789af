"""Mean and standard deviation of a set's latents, by which diffusion shifts and scales them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from mezzotint.common.errors import UserError

LATENTS, DEVIATIONS = "latents", "latent_deviations"
"""Arrays of a derived set: latents, of a gaussian first stage the means, and their standard
deviations."""


class _Number(Protocol):
    def __sub__(self, other: float, /) -> Self: ...
    def __add__(self, other: float, /) -> Self: ...
    def __mul__(self, other: float, /) -> Self: ...
    def __truediv__(self, other: float, /) -> Self: ...


Values = TypeVar("Values", bound=_Number)
"""A tensor or an array of latents."""


class LatentScaling(BaseModel, frozen=True, extra="forbid"):
    """Statistics of a whole set's latents, one number each over all values of all samples.

    Of a gaussian first stage they are those of posterior samples: the variance is that of the means
    plus the mean of the squared deviations. Latents are diffused with mean 0 and standard deviation
    1 (latent diffusion, arXiv 2112.10752, appendix G).
    """

    mean: float = Field(allow_inf_nan=False)
    std: float = Field(gt=0, allow_inf_nan=False)
    samples: int = Field(gt=0)
    """Samples that were measured."""

    @property
    def shift(self) -> float:
        """What is subtracted from latents."""
        return self.mean

    @property
    def scale(self) -> float:
        """What the shifted latents are multiplied by."""
        return 1 / self.std

    def normalize(self, latents: Values) -> Values:
        """First-stage latents to the values that are diffused."""
        return (latents - self.shift) * self.scale

    def denormalize(self, values: Values) -> Values:
        """The inverse of `normalize`."""
        return values / self.scale + self.shift


@dataclass(frozen=True)
class LatentMoments:
    """Statistics of a part of a set, in float64; parts are merged exactly (Chan et al. 1979)."""

    samples: int = 0
    values: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared differences from the mean, and of the squared deviations."""

    @classmethod
    def of(
        cls, latents: NDArray[np.generic], deviations: NDArray[np.generic] | None = None
    ) -> "LatentMoments":
        """Of latents (B, ...), and their standard deviations where they are gaussian."""
        return cls().with_samples(latents, deviations)

    def with_samples(
        self, latents: NDArray[np.generic], deviations: NDArray[np.generic] | None = None
    ) -> "LatentMoments":
        """Of these samples and further ones, see `of`.

        Samples are added one by one: how many are passed together does not change a bit.
        """
        found = self
        for row in range(len(latents)):
            values = np.ascontiguousarray(latents[row], dtype=np.float64).ravel()
            mean = float(values.mean())
            squares = float(np.square(values - mean).sum())
            if deviations is not None:
                spread = np.ascontiguousarray(deviations[row], dtype=np.float64).ravel()
                squares += float(np.square(spread).sum())
            found = found + LatentMoments(1, values.size, mean, squares)
        return found

    def __add__(self, other: "LatentMoments") -> "LatentMoments":
        """The statistics of both parts together."""
        values = self.values + other.values
        if values == 0:
            return self
        apart = other.mean - self.mean
        return LatentMoments(
            self.samples + other.samples,
            values,
            self.mean + apart * (other.values / values),
            self.squares + other.squares + apart * apart * (self.values * (other.values / values)),
        )

    def scaling(self, name: str) -> LatentScaling:
        """The statistics of the set that messages call `name`.

        Raises:
            UserError: all values are equal.
        """
        variance = self.squares / max(self.values, 1)
        if not variance > 0:
            raise UserError(
                f"{name}: all latents have the value {self.mean:.4g}, so nothing can be learned "
                "from them; train the first stage again"
            )
        return LatentScaling(mean=self.mean, std=math.sqrt(variance), samples=self.samples)


def merged(parts: Iterable[LatentMoments]) -> LatentMoments:
    """The statistics of all parts together."""
    return sum(parts, LatentMoments())
