"""The shapes of buckets, and the one that is nearest to an image."""

import math

import numpy as np
from numpy.typing import NDArray

from data_pipeline.geometry.config import BucketConfig
from data_pipeline.geometry.frame import Shape

_SMALLEST = 1


def bucket_shapes(size: int, config: BucketConfig) -> tuple[Shape, ...]:
    """Shapes of at most `size`^2 pixels, the largest of each proportion, from tall to wide."""
    unit = config.multiple
    found: dict[float, Shape] = {}
    for short in range(unit, size + 1, unit):
        long = size * size // short // unit * unit
        if long > short * config.max_aspect:
            continue
        for shape in (Shape(short, long), Shape(long, short)):
            ratio = shape.width / shape.height
            found[ratio] = max(shape, found.get(ratio, shape), key=lambda one: one.width)
    return tuple(shape for _, shape in sorted(found.items()))


def nearest(sizes: NDArray[np.int64], shapes: tuple[Shape, ...]) -> NDArray[np.int64]:
    """Which shape's proportions are nearest, by their ratio, to each of images (n, 2) of width and
    height; (n,)."""
    images = np.log(np.maximum(sizes, _SMALLEST)) @ (1.0, -1.0)
    known = np.array([math.log(shape.width / shape.height) for shape in shapes])
    return np.searchsorted((known[1:] + known[:-1]) / 2, images).astype(np.int64)


def cut_off(sizes: NDArray[np.int64], shape: Shape) -> NDArray[np.float64]:
    """The share of each image's area that lies outside of a shape that it fills, (n,)."""
    ratio = sizes[:, 0] / np.maximum(sizes[:, 1], _SMALLEST) * shape.height / shape.width
    return 1 - np.minimum(ratio, 1 / np.maximum(ratio, 1e-9))
