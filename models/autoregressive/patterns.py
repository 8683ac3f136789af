"""Which image positions each layer of the prior attends to (arXiv 2102.12092, B.1, figure 11).

Image positions count in raster order. Every image position attends to the whole caption, every
caption position to the caption up to itself; a pattern restricts attention within the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, assert_never

import torch
from torch import Tensor

MaskFlavor = Literal["paper", "dalle_pytorch", "dense"]


class Pattern(Protocol):
    """The image positions that an image position attends to."""

    name: ClassVar[str]
    """`row`, `column` or `convolution`."""
    transposed: ClassVar[bool]
    """Whether they are contiguous in column-major order of the image."""

    @property
    def width(self) -> int:
        """Positions of a row of the grid."""

    @property
    def back(self) -> int:
        """Rows (columns, if transposed) before its own that a position attends to."""

    def __hash__(self) -> int: ...

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether position `query` attends to position `key`: bool, by broadcasting."""

    def cache_size(self, positions: int) -> int:
        """The newest image positions to keep in a grid of `positions`, the current one included."""

    def ring_slots(self, position: int) -> slice | Sequence[int]:
        """What `position` attends to, as slots of a ring buffer of `cache_size` positions.

        Position p is in slot p mod `cache_size`.
        """


@dataclass(frozen=True)
class Row:
    """The `width` positions before it, back to the one above it, and itself."""

    name: ClassVar = "row"
    transposed: ClassVar = False
    back: ClassVar = 1
    width: int

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query - key <= self.width)

    def cache_size(self, positions: int) -> int:
        return min(self.width + 1, positions)

    def ring_slots(self, position: int) -> slice:
        return slice(0, min(position, self.width) + 1)


@dataclass(frozen=True)
class OwnRow:
    """The positions before it in its own row, and itself (DALLE-pytorch's `axial_row`)."""

    name: ClassVar = "row"
    transposed: ClassVar = False
    back: ClassVar = 0
    width: int

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key // self.width == query // self.width)

    def cache_size(self, positions: int) -> int:
        return min(self.width, positions)

    def ring_slots(self, position: int) -> slice:
        return slice(0, position % self.width + 1)


@dataclass(frozen=True)
class Column:
    """The positions above it in its own column, and itself (also DALLE-pytorch's `axial_col`).

    A row pattern over a transposed image would read positions to its right: it leaks the future.
    """

    name: ClassVar = "column"
    transposed: ClassVar = True
    back: ClassVar = 0
    width: int

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key % self.width == query % self.width)

    def cache_size(self, positions: int) -> int:
        return positions  # the row below attends to every position

    def ring_slots(self, position: int) -> slice:
        return slice(position % self.width, position + 1, self.width)


@dataclass(frozen=True)
class Convolution:
    """The causal half of a square kernel around it, wrapping from row to row like `Row`."""

    name: ClassVar = "convolution"
    transposed: ClassVar = False
    width: int
    kernel: int

    @property
    def back(self) -> int:
        half = self.kernel // 2
        return half + -(-half // self.width)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Distances to the positions that it attends to, ascending from 0."""
        half = self.kernel // 2
        reached = {
            down * self.width + across
            for down in range(half + 1)
            for across in range(-half, half + 1)
        }
        return tuple(sorted(offset for offset in reached if offset >= 0))

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        half = self.kernel // 2
        shifted = query - key + half
        # where rows are narrower than the kernel, the most rows down leave the least across
        down = (shifted // self.width).clamp(max=half)
        return (key <= query) & (shifted - down * self.width <= 2 * half)

    def cache_size(self, positions: int) -> int:
        return min(self.offsets[-1] + 1, positions)

    def ring_slots(self, position: int) -> list[int]:
        ring = self.offsets[-1] + 1
        return [(position - offset) % ring for offset in self.offsets if offset <= position]


@dataclass(frozen=True)
class Corner:
    """A square kernel whose lower right corner is the position, without wrapping.

    DALLE-pytorch's `conv_like`.
    """

    name: ClassVar = "convolution"
    transposed: ClassVar = False
    width: int
    kernel: int

    @property
    def back(self) -> int:
        return self.kernel - 1

    def allows(self, query: Tensor, key: Tensor) -> Tensor:
        down = query // self.width - key // self.width
        across = query % self.width - key % self.width
        return (down >= 0) & (down < self.kernel) & (across >= 0) & (across < self.kernel)

    def cache_size(self, positions: int) -> int:
        return min(self._ring, positions)

    def ring_slots(self, position: int) -> list[int]:
        row, column = divmod(position, self.width)
        return [
            (upper * self.width + left) % self._ring
            for upper in range(max(0, row - self.kernel + 1), row + 1)
            for left in range(max(0, column - self.kernel + 1), column + 1)
        ]

    @property
    def _ring(self) -> int:
        return (self.kernel - 1) * self.width + min(self.kernel, self.width)


def layer_patterns(
    flavor: MaskFlavor, layers: int, width: int, kernel: int | None
) -> tuple[Pattern | None, ...]:
    """The pattern of every layer; None is full causal attention.

    Counting from 1, the last layer is convolutional, layers 2, 6, 10 … are column layers, the
    others row layers: of 64, 47 row, 16 column and 1 convolutional (arXiv 2102.12092, B.1).
    `kernel` is the side of the convolution, 11 in the paper and 5 in DALLE-pytorch where None.
    """
    row: Pattern
    convolution: Pattern
    match flavor:
        case "dense":
            return (None,) * layers
        case "paper":
            row, convolution = Row(width), Convolution(width, kernel or 11)
        case "dalle_pytorch":
            row, convolution = OwnRow(width), Corner(width, kernel or 5)
        case _:
            assert_never(flavor)
    column = Column(width)
    patterns = [column if index % 4 == 1 else row for index in range(layers)]
    return (*patterns[:-1], convolution)


def joint_allows(pattern: Pattern | None, prefix: int, query: Tensor, key: Tensor) -> Tensor:
    """`Pattern.allows` in the joint sequence, whose first `prefix` positions are the caption's."""
    before = key <= query
    if pattern is None:
        return before
    image = pattern.allows(query - prefix, key - prefix)
    return before & ((key < prefix) | (image & (query >= prefix)))


def joint_mask(
    pattern: Pattern | None, prefix: int, length: int, *, device: torch.device | str = "cpu"
) -> Tensor:
    """The mask (length, length) of the joint sequence: whether row attends to column."""
    positions = torch.arange(length, device=device)
    return joint_allows(pattern, prefix, positions[:, None], positions)
