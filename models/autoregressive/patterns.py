"""Which places of the image each layer of the prior reads (arXiv 2102.12092, B.1, figure 11).

Image places count in raster order. Every image place reads the whole caption, every caption place
the caption up to itself; a pattern says what an image place reads of the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

import torch
from torch import Tensor

MaskFlavor = Literal["paper", "dalle_pytorch", "dense"]


class Pattern(Protocol):
    """What image places read of the image."""

    @property
    def name(self) -> str:
        """`row`, `column` or `convolution`."""
        ...

    @property
    def width(self) -> int:
        """Places of a row of the grid."""
        ...

    @property
    def transposed(self) -> bool:
        """Whether what is read lies together when the image is walked column by column."""
        ...

    @property
    def back(self) -> int:
        """Rows (of columns, if transposed) before its own into which a place reaches."""
        ...

    def __hash__(self) -> int: ...

    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the image place `query` reads the image place `key`: bool, by broadcasting."""
        ...

    def kept(self, places: int) -> int:
        """The newest image places a layer must remember in a grid of `places`, itself included."""
        ...

    def remembered(self, place: int) -> slice | Sequence[int]:
        """What `place` reads, as slots of a ring of `kept` places (place p lies at p mod kept)."""
        ...


@dataclass(frozen=True)
class Row:
    """The `width` places before it, back to the one above it, and itself."""

    width: int
    name: str = "row"
    transposed: bool = False
    back: int = 1

    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """See `Pattern`."""
        return (key <= query) & (query - key <= self.width)

    def kept(self, places: int) -> int:
        """See `Pattern`."""
        return min(self.width + 1, places)

    def remembered(self, place: int) -> slice:
        """See `Pattern`: the whole ring."""
        return slice(0, min(place, self.width) + 1)


@dataclass(frozen=True)
class OwnRow:
    """The places before it in its own row, and itself (DALLE-pytorch's `axial_row`)."""

    width: int
    name: str = "row"
    transposed: bool = False
    back: int = 0

    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """See `Pattern`."""
        return (key <= query) & (key // self.width == query // self.width)

    def kept(self, places: int) -> int:
        """See `Pattern`."""
        return min(self.width, places)

    def remembered(self, place: int) -> slice:
        """See `Pattern`."""
        return slice(0, place % self.width + 1)


@dataclass(frozen=True)
class Column:
    """The places above it in its own column, and itself (also DALLE-pytorch's `axial_col`).

    A row pattern over a transposed image would read places to its right: it leaks the future.
    """

    width: int
    name: str = "column"
    transposed: bool = True
    back: int = 0

    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """See `Pattern`."""
        return (key <= query) & (key % self.width == query % self.width)

    def kept(self, places: int) -> int:
        """See `Pattern`: every place is read again from the row below."""
        return places

    def remembered(self, place: int) -> slice:
        """See `Pattern`."""
        return slice(place % self.width, place + 1, self.width)


@dataclass(frozen=True)
class Convolution:
    """The causal half of a square kernel around it, wrapping from row to row like `Row`."""

    width: int
    kernel: int
    name: str = "convolution"
    transposed: bool = False

    @property
    def back(self) -> int:
        """See `Pattern`."""
        half = self.kernel // 2
        return half + -(-half // self.width)

    @property
    def offsets(self) -> tuple[int, ...]:
        """How far before it lie the places it reads; ascending, from 0."""
        half = self.kernel // 2
        reached = {
            down * self.width + across
            for down in range(half + 1)
            for across in range(-half, half + 1)
        }
        return tuple(sorted(offset for offset in reached if offset >= 0))

    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """See `Pattern`."""
        half = self.kernel // 2
        shifted = query - key + half
        # where rows are narrower than the kernel, the most rows down leave the least across
        down = (shifted // self.width).clamp(max=half)
        return (key <= query) & (shifted - down * self.width <= 2 * half)

    def kept(self, places: int) -> int:
        """See `Pattern`."""
        return min(self.offsets[-1] + 1, places)

    def remembered(self, place: int) -> list[int]:
        """See `Pattern`. Valid for a ring of `kept` places, or of more."""
        ring = self.offsets[-1] + 1
        return [(place - offset) % ring for offset in self.offsets if offset <= place]


@dataclass(frozen=True)
class Corner:
    """A square kernel whose lower right corner is the place, without wrapping.

    DALLE-pytorch's `conv_like`.
    """

    width: int
    kernel: int
    name: str = "convolution"
    transposed: bool = False

    @property
    def back(self) -> int:
        """See `Pattern`."""
        return self.kernel - 1

    def reads(self, query: Tensor, key: Tensor) -> Tensor:
        """See `Pattern`."""
        down = query // self.width - key // self.width
        across = query % self.width - key % self.width
        return (down >= 0) & (down < self.kernel) & (across >= 0) & (across < self.kernel)

    def kept(self, places: int) -> int:
        """See `Pattern`."""
        return min(self._ring, places)

    def remembered(self, place: int) -> list[int]:
        """See `Pattern`. Valid for a ring of `kept` places."""
        row, column = divmod(place, self.width)
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
    """The pattern of every layer; None reads everything before it.

    Counting from 1, the last layer is convolutional, layers 2, 6, 10 … read columns and the others
    rows: of 64, 47 row, 16 column and 1 convolutional (arXiv 2102.12092, B.1). `kernel` is the side
    of the convolution, 11 in the paper and 5 in DALLE-pytorch where None.
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
    patterns = [column if place % 4 == 1 else row for place in range(layers)]
    return (*patterns[:-1], convolution)


def joint_allowed(pattern: Pattern | None, prefix: int, query: Tensor, key: Tensor) -> Tensor:
    """The same over the joint sequence, whose first `prefix` places are start and caption."""
    before = key <= query
    if pattern is None:
        return before
    image = pattern.reads(query - prefix, key - prefix)
    return before & ((key < prefix) | (image & (query >= prefix)))


def joint_mask(pattern: Pattern | None, prefix: int, length: int) -> Tensor:
    """The mask (length, length) of the joint sequence, True where the row reads the column."""
    places = torch.arange(length)
    return joint_allowed(pattern, prefix, places[:, None], places)
