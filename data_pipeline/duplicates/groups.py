"""Groups of samples with equal or nearly equal images."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data_pipeline.duplicates.signature import BANDS, GRADIENT_BYTES, apart

_MOST = 2_000
"""Signatures with one band in common that are compared with each other; of more, each is compared
with as many after it."""

Numbers = NDArray[np.int64]


def groups_of(
    files: NDArray[np.uint64], signatures: NDArray[np.uint8], bits: int, colours: int
) -> list[list[int]]:
    """Groups of at least two samples, perhaps connected through others, each ascending.

    `files` (n,) are digests of the image files and `signatures` (n, 80). Two images are nearly
    equal if at most `bits` of the gradient, below 8, and `colours` levels differ.
    """
    roots = np.arange(len(files))

    def root(number: int) -> int:
        while roots[number] != number:
            roots[number] = roots[roots[number]]
            number = int(roots[number])
        return number

    for one, other in _pairs(files, signatures, bits, colours):
        first, second = sorted((root(one), root(other)))
        roots[second] = first
    found: dict[int, list[int]] = {}
    for number in range(len(files)):
        found.setdefault(root(number), []).append(number)
    return [group for group in found.values() if len(group) > 1]


def _pairs(
    files: NDArray[np.uint64], signatures: NDArray[np.uint8], bits: int, colours: int
) -> Iterator[tuple[int, int]]:
    for same in _equal(files):
        yield from ((int(same[0]), int(other)) for other in same[1:])
    whole = np.ascontiguousarray(signatures).view(f"V{signatures.shape[1]}").reshape(-1)
    _, first, kinds = np.unique(whole, return_index=True, return_inverse=True)
    for same in _equal(kinds):
        yield from ((int(same[0]), int(other)) for other in same[1:])
    bands = signatures[first, :GRADIENT_BYTES].reshape(len(first), BANDS, -1)
    for band in range(BANDS):
        values = np.ascontiguousarray(bands[:, band]).view(np.uint32).reshape(-1)
        for same in _equal(values):
            yield from _near(first[same], signatures, bits, colours)


def _equal(values: NDArray[np.generic]) -> Iterator[Numbers]:
    """The places of every value that occurs more than once."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    for start, end in zip(starts, np.append(starts[1:], len(order)), strict=True):
        if end - start > 1:
            yield order[start:end]


def _near(
    numbers: Numbers, signatures: NDArray[np.uint8], bits: int, colours: int
) -> Iterator[tuple[int, int]]:
    for place, number in enumerate(numbers[:-1]):
        others = numbers[place + 1 : place + 1 + _MOST]
        different, away = apart(signatures[number], signatures[others])
        for other in others[(different <= bits) & (away <= colours)]:
            yield int(number), int(other)
