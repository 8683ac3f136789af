"""Widths and heights of images, which a set's indexes have as attributes."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from data_pipeline.manifest import Attribute
from data_pipeline.sets.shard_index import ShardIndex

_WIDTH, _HEIGHT = "width", "height"


def size_attributes(width: int, height: int) -> dict[str, Attribute]:
    """The attributes of a sample whose upright image has so many pixels."""
    return {_WIDTH: width, _HEIGHT: height}


def sizes_among(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Those of a sample's attributes that are the size of its image."""
    return {name: attributes[name] for name in (_WIDTH, _HEIGHT) if name in attributes}


def image_sizes(index: ShardIndex, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Width and height of the images of these samples, (n, 2); at most 0 where there is none."""
    return np.stack([index.integers(name)[rows] for name in (_WIDTH, _HEIGHT)], axis=1)
