"""Numbers of a set's images: sizes, equal ones, bars, and what is done to show them."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import Dataset
from data_pipeline.images import IMAGE_EXTENSIONS, ImageNote, read_image
from data_pipeline.inspection.limits import ELONGATED, TINY
from data_pipeline.packing.report import Count, by_rule, counts
from mezzotint.common.errors import UserError

MAX_PIXELS = 178_000_000
"""Pillow's own limit; a recipe may set a lower one."""

_BAR = 0.02
"""Share of the height or width from which a constant margin is a bar."""
_TOLERANCE = 8
"""Levels by which the pixels of a bar may differ, after lossy compression."""


@dataclass(frozen=True)
class ImageStatistics:
    """Numbers of the images that were decoded."""

    read: int
    smallest: tuple[int, int]
    """Width and height of the image with the fewest pixels."""
    largest: tuple[int, int]
    aspect_max: float
    """The longer side by the shorter one."""
    noticed: Mapping[str, Count]
    """Images that may not be meant as they are, with the first keys."""


@dataclass(frozen=True)
class _Image:
    key: str
    size: tuple[int, int] | None
    """None if it cannot be decoded."""
    noticed: tuple[str, ...]


def image_statistics(dataset: Dataset, indices: Sequence[int]) -> ImageStatistics | None:
    """Decode some images of a set; None if it has none."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = [one for one in pool.map(lambda index: _look(dataset, index), indices) if one]
    sizes = sorted((one.size for one in images if one.size), key=lambda size: size[0] * size[1])
    if not sizes:
        return None
    return ImageStatistics(
        read=len(images),
        smallest=sizes[0],
        largest=sizes[-1],
        aspect_max=max(max(size) / min(size) for size in sizes),
        noticed=counts(by_rule((what, one.key) for one in images for what in one.noticed)),
    )


def image_extension(dataset: Dataset, index: int) -> str | None:
    """The member of a sample that is its image."""
    members = dataset.entry(index).members
    return next((one for one in IMAGE_EXTENSIONS if one in members), None)


def bars(pixels: NDArray[np.uint8]) -> str | None:
    """`white`, `black` or `one colour` if (H, W, 3) has bars above and below, or left and right.

    As resizing to a square with padding makes them: margins of one colour on two opposite sides.
    An object on a plain background, which has margins on its other sides too, has none.
    """
    for lines in (pixels, pixels.transpose(1, 0, 2)):
        colour = np.median(lines[0], axis=0)
        if not (_is(lines[:1], colour).all() and _is(lines[-1:], colour).all()):
            continue
        constant = _is(lines, colour)
        if constant.all():
            return None
        before, after = int(constant.argmin()), int(constant[::-1].argmin())
        inner = lines[before : len(lines) - after].transpose(1, 0, 2)
        wide = min(before, after) >= max(2, _BAR * len(lines))
        if wide and not _is(inner[[0, -1]], colour).any():
            return _name(colour)
    return None


def _look(dataset: Dataset, index: int) -> _Image | None:
    extension = image_extension(dataset, index)
    if extension is None:
        return None
    key = dataset.entry(index).key
    try:
        decoded = read_image(dataset.member(index, extension), key, max_pixels=MAX_PIXELS)
    except UserError:
        return _Image(key, None, ("not readable",))
    width, height = size = decoded.image.size
    noticed: list[str] = list(decoded.notes)
    if min(size) < TINY:
        noticed.append(f"a side below {TINY} pixels")
    if max(size) > ELONGATED * min(size):
        noticed.append(f"more than {ELONGATED:g} times as long as wide")
    if ImageNote.ON_WHITE not in decoded.notes and min(width, height) > 1:
        colour = bars(np.asarray(decoded.image))
        noticed += [f"{colour} bars"] if colour else []
    return _Image(key, size, tuple(noticed))


def _is(lines: NDArray[np.uint8], colour: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which lines (n, pixels, 3) have that colour throughout."""
    low, high = colour - _TOLERANCE, colour + _TOLERANCE
    return np.asarray(((lines >= low) & (lines <= high)).all(axis=(1, 2)))


def _name(colour: NDArray[np.float64]) -> str:
    if colour.min() >= 255 - _TOLERANCE:
        return "white"
    return "black" if colour.max() <= _TOLERANCE else "one-colour"
