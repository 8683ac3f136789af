"""Between [-1, 1] and 8 bits."""

import numpy as np
import torch

from mezzotint.inference.images import from_bytes, to_bytes, to_pil


def test_every_8_bit_level_survives_the_way_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_bytes(from_bytes(levels)), levels)
    assert np.array_equal(np.array(to_pil(levels[0])), levels[0])


def test_values_outside_the_range_are_clipped():
    image = torch.tensor([-3.0, 3.0, 0.0]).view(1, 3, 1, 1)
    assert to_bytes(image).flatten().tolist() == [0, 255, 128]
