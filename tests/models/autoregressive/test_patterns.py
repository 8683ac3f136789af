"""Which positions each layer reads: counts, definitions, and what a cache must keep."""

import hashlib

import numpy
import pytest
import torch
from pydantic import ValidationError

from models.autoregressive.patterns import (
    Column,
    Convolution,
    Corner,
    OwnRow,
    Row,
    joint_mask,
    layer_patterns,
)
from models.autoregressive.prior import PriorConfig

SMALL = [
    Row(4),
    OwnRow(4),
    Column(4),
    Convolution(4, 3),
    Convolution(8, 11),
    Convolution(3, 11),
    Corner(4, 3),
    Corner(4, 5),
]


DALLE_PYTORCH = {
    "row": "af92edddf0ca736c1cbad5d73a11169ff204a35c69be9eb0414496e0c05fd5b7",
    "column": "2c4482b3f66de754625299af606763582307b9574092c500c189075c1b3660ec",
    "convolution": "d2fa33803ab9d85c307528c533799f5ad88df11f325f36889e280f3afaaaa674",
}
"""SHA-256 of the bits of dalle-pytorch 1.6.6's masks for 256 text tokens and a grid of 32.

`axial_row` and `axial_col` of `_get_attention_mask` (causal part), `conv_like` by changing one
input at a time."""


def image_mask(pattern, rows=None):
    positions = torch.arange((rows or pattern.width) * pattern.width)
    return pattern.allows(positions[:, None], positions)


@pytest.mark.parametrize(
    ("pattern", "scores"),
    [
        (Row(32), 33_264),
        (Column(32), 16_896),
        (Convolution(32, 11), 57_169),
        (OwnRow(32), 16_896),
        (Corner(32, 5), 22_500),
    ],
)
def test_a_grid_of_32_has_the_known_number_of_scores(pattern, scores):
    mask = image_mask(pattern)
    assert int(mask.sum()) == scores
    assert not bool(mask.triu(1).any())
    assert bool(mask.diagonal().all())


def test_the_papers_figure_of_a_row_layer_on_a_grid_of_4():
    assert image_mask(Row(4))[8].nonzero()[:, 0].tolist() == [4, 5, 6, 7, 8]


def test_a_convolution_wraps_from_row_to_row():
    assert image_mask(Convolution(4, 3))[8].nonzero()[:, 0].tolist() == [3, 4, 5, 7, 8]
    assert image_mask(Corner(4, 3))[8].nonzero()[:, 0].tolist() == [0, 4, 8]


def dalle_pytorch_axial(axis, prefix, side):
    """Rows or columns of the image seen as (rows, columns) and the whole prefix, causal."""
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    line = column if axis else row
    mask = torch.zeros(prefix + side * side, prefix + side * side, dtype=torch.bool)
    mask[:, :prefix] = True
    mask[prefix:, prefix:] = line[:, None] == line
    return mask.tril()


def dalle_pytorch_convolution(prefix, side, kernel):
    """What a kernel padded only above and to the left picks, by unfolding position numbers."""
    count = side * side
    numbers = torch.arange(1.0, count + 1).view(1, 1, side, side)
    padded = torch.nn.functional.pad(numbers, (kernel - 1, 0, kernel - 1, 0))
    picked = torch.nn.functional.unfold(padded, kernel)[0].long()
    mask = torch.zeros(prefix + count, prefix + count + 1, dtype=torch.bool)
    mask[:, 1 : prefix + 1] = True
    for position in range(count):
        mask[prefix + position, (picked[:, position] + prefix) * (picked[:, position] > 0)] = True
    return mask[:, 1:].tril()


@pytest.mark.parametrize("side", [4, 32])
def test_the_dalle_pytorch_flavour_has_its_masks(side):
    prefix = 7
    length = prefix + side * side
    row, column, *_, convolution = layer_patterns("dalle_pytorch", 4, side, None)
    assert torch.equal(joint_mask(row, prefix, length), dalle_pytorch_axial(0, prefix, side))
    assert torch.equal(joint_mask(column, prefix, length), dalle_pytorch_axial(1, prefix, side))
    wanted = dalle_pytorch_convolution(prefix, side, 5)
    assert torch.equal(joint_mask(convolution, prefix, length), wanted)


def test_the_dalle_pytorch_flavour_equals_the_package_itself():
    for pattern in layer_patterns("dalle_pytorch", 4, 32, None):
        bits = numpy.packbits(joint_mask(pattern, 257, 1280).numpy())
        assert hashlib.sha256(bits.tobytes()).hexdigest() == DALLE_PYTORCH[pattern.name]


@pytest.mark.parametrize("pattern", [*SMALL, None])
def test_images_read_the_whole_caption_and_nothing_reads_the_future(pattern):
    prefix = 5
    mask = joint_mask(pattern, prefix, prefix + 9)
    assert bool(mask[prefix:, :prefix].all())
    assert torch.equal(mask[:prefix], torch.ones_like(mask).tril()[:prefix])
    assert not bool(mask.triu(1).any())


def test_64_layers_are_47_row_16_column_and_1_convolutional():
    names = [pattern.name for pattern in layer_patterns("paper", 64, 32, None)]
    assert names[:4] == ["row", "column", "row", "row"]
    assert names[63] == "convolution"
    assert [names.count(name) for name in ("row", "column", "convolution")] == [47, 16, 1]
    assert layer_patterns("paper", 64, 32, None)[63] == Convolution(32, 11)
    assert layer_patterns("dense", 3, 32, None) == (None, None, None)


@pytest.mark.parametrize("pattern", SMALL)
def test_a_ring_keeps_exactly_what_is_read(pattern):
    mask = image_mask(pattern, rows=9)
    positions = len(mask)
    kept = pattern.cache_size(positions)
    for position in range(positions):
        slots = pattern.ring_slots(position)
        chosen = list(range(kept))[slots] if isinstance(slots, slice) else slots
        held = {each % kept: each for each in range(max(0, position - kept + 1), position + 1)}
        assert len(set(chosen)) == len(chosen)
        read = mask[position].nonzero()[:, 0].tolist()
        assert sorted(held[slot] for slot in chosen) == read


@pytest.mark.parametrize("pattern", SMALL)
def test_blocks_reach_as_far_as_the_pattern_says(pattern):
    rows = 9
    query, key = image_mask(pattern, rows).nonzero().T
    if pattern.transposed:
        assert bool((query % pattern.width == key % pattern.width).all())
    else:
        assert int((query // pattern.width - key // pattern.width).max()) <= pattern.back


def test_a_kernel_without_a_middle_and_a_kernel_of_a_dense_prior_are_refused():
    sizes = {"text_vocab": 9, "text_length": 3, "image_vocab": 8, "grid": (4, 4)}
    with pytest.raises(ValidationError, match="mask_kernel is odd"):
        PriorConfig(**sizes, mask_flavor="paper", mask_kernel=4)
    with pytest.raises(ValidationError, match="not dense"):
        PriorConfig(**sizes, mask_kernel=3)
    assert PriorConfig(**sizes, mask_flavor="paper", mask_kernel=3, layers=1).patterns == (
        Convolution(4, 3),
    )
