"""Exact match: is the real image nearest to a sample the one its caption belongs to?

Distances are squared differences of 8-bit pixels, summed in float64. All terms are integers below
2^53, so the arithmetic is exact and does not depend on the order of summation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """The real images a sample may be nearest to; pixel-identical ones are merged.

    `pixels` (U, D) float64 are the distinct images, `captions` the captions each of them carries:
    several captions may share one image, and any of them is then right.
    """

    pixels: Tensor
    captions: tuple[frozenset[str], ...]
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, images: Tensor, captions: Sequence[str]) -> "Candidates":
        """Merge images (N, H, W, 3) uint8 with one caption each."""
        if images.dtype != torch.uint8 or len(images) != len(captions) or len(captions) == 0:
            raise ValueError(
                f"need as many captions as 8-bit images, got {len(captions)} captions and "
                f"{tuple(images.shape)} {images.dtype}"
            )
        carried: dict[bytes, set[str]] = {}
        first: dict[bytes, int] = {}
        for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
            content = image.numpy().tobytes()
            carried.setdefault(content, set()).add(caption)
            first.setdefault(content, index)
        distinct = images[list(first.values())]
        height, width, channels = distinct.shape[1:]
        return cls(
            pixels=distinct.flatten(1).double(),
            captions=tuple(frozenset(names) for names in carried.values()),
            shape=(height, width, channels),
        )


@dataclass(frozen=True)
class Match:
    """The nearest real image of one sample: index of the distinct candidate, and what it means.

    `mse` is the mean squared difference on the scale [-1, 1].
    """

    candidate: int
    mse: float
    exact: bool


def nearest(
    samples: Tensor, captions: Sequence[str], candidates: Candidates, *, block: int = 256
) -> list[Match]:
    """Match samples (N, H, W, 3) uint8, each generated for the caption at its index.

    Raises:
        ValueError: samples and candidates have different sizes.
    """
    if tuple(samples.shape[1:]) != candidates.shape or samples.dtype != torch.uint8:
        raise ValueError(
            f"samples {tuple(samples.shape[1:])} {samples.dtype} cannot be compared with 8-bit "
            f"candidates {candidates.shape}"
        )
    norms = candidates.pixels.square().sum(dim=1)
    scale = 127.5**2 * candidates.pixels.shape[1]
    matches: list[Match] = []
    for start in range(0, len(samples), block):
        pixels = samples[start : start + block].flatten(1).double()
        products = pixels @ candidates.pixels.T
        squares = pixels.square().sum(dim=1, keepdim=True) - 2 * products + norms
        least = squares.min(dim=1)
        for offset, (square, index) in enumerate(
            zip(least.values.tolist(), least.indices.tolist(), strict=True)
        ):
            exact = captions[start + offset] in candidates.captions[index]
            matches.append(Match(candidate=index, mse=square / scale, exact=exact))
    return matches
