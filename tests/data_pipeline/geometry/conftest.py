"""Samples with images of any size."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from data_pipeline.packing.shard_writer import RawSample


@pytest.fixture
def make_raw() -> Callable[..., RawSample]:
    """Makes samples of noise, of a width and height."""

    def make(key: str, caption: str, width: int = 8, height: int = 8, **attributes) -> RawSample:
        rng = np.random.default_rng(abs(hash((width, height))) % 1000)
        content = io.BytesIO()
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, "PNG")
        return RawSample(key, {"png": content.getvalue(), "txt": caption.encode()}, attributes)

    return make
