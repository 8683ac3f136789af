"""The part of an image that a sample shows: arithmetic of sizes alone."""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

from data_pipeline.geometry.config import CropConfig
from mezzotint.common.preprocessing import Fit

DRAWS = 5
"""Random numbers of a view."""
_CENTRE = 0.5


class Shape(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True)
class View:
    """How an image of any size is framed: shape, fit and the random numbers of a crop."""

    shape: Shape
    fit: Fit
    crop: CropConfig | None = None
    draws: tuple[float, ...] = (_CENTRE,) * DRAWS
    """In [0, 1): horizontal and vertical position of the first part, side after resizing, and
    position of the last part."""

    def frame(self, width: int, height: int) -> "Frame":
        """Of an upright image of this size."""
        if self.fit == "pad":
            return self._padded(width, height)
        first = self._largest(width, height)
        left, top = self._first_position(width - first.width, height - first.height)
        resized = self._resized(first)
        x = _between((0, resized.width - self.shape.width), self.draws[3])
        y = _between((0, resized.height - self.shape.height), self.draws[4])
        return Frame(left, top, first, resized, x, y, self.shape)

    def _padded(self, width: int, height: int) -> "Frame":
        """The smallest canvas of the shape's proportions, with the image in its centre."""
        wanted = self.shape
        canvas = Shape(
            max(width, _nearest(height * wanted.width, wanted.height)),
            max(height, _nearest(width * wanted.height, wanted.width)),
        )
        left, top = -((canvas.width - width) // 2), -((canvas.height - height) // 2)
        return Frame(left, top, canvas, wanted, 0, 0, wanted)

    def _largest(self, width: int, height: int) -> Shape:
        """The largest part of the shape's proportions, in whole pixels."""
        wanted = self.shape
        return Shape(
            max(1, min(width, _nearest(height * wanted.width, wanted.height))),
            max(1, min(height, _nearest(width * wanted.height, wanted.width))),
        )

    def _first_position(self, across: int, down: int) -> tuple[int, int]:
        """Where the first part begins, when so many pixels are left beside and below it."""
        margins = zip((across, down), self.draws[:2], strict=True)
        match self.crop.position if self.crop else "centre":
            case "centre":
                return across // 2, down // 2
            case "near_centre":
                left, top = (_between(_three_eighths(margin), draw) for margin, draw in margins)
            case "random":
                left, top = (_between((0, margin), draw) for margin, draw in margins)
        return left, top

    def _resized(self, first: Shape) -> Shape:
        """The size that the first part is resized to."""
        size, low, high = self.shape.width, *(self.crop.resize if self.crop else (1.0, 1.0))
        ends = (max(size, min(first.width, _rounded(each * size))) for each in (low, high))
        side = _between((next(ends), next(ends)), self.draws[2])
        return Shape(side, max(self.shape.height, _nearest(side * self.shape.height, size)))


@dataclass(frozen=True)
class Frame:
    """A canvas over an image, which is resized, and the part of that which is shown."""

    left: int
    """Of the canvas, in pixels of the image; negative where it begins beside the image."""
    top: int
    canvas: Shape
    resized: Shape
    """The size that the canvas is resized to."""
    x: int
    """Of what is shown, in pixels of the resized canvas."""
    y: int
    shape: Shape
    """Of what is shown."""

    def is_image(self, width: int, height: int) -> bool:
        """Whether it shows a whole image of this size as it is."""
        return self.canvas == self.resized == self.shape == (width, height)

    @property
    def scale(self) -> float:
        """Pixels of the canvas for one of the result, along the axis with fewer of them."""
        pairs = zip(self.canvas, self.resized, strict=True)
        return min(before / after for before, after in pairs)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """What is shown, as left, top, right and bottom in pixels of the image."""
        across = self.canvas.width / self.resized.width
        down = self.canvas.height / self.resized.height
        return (
            self.left + self.x * across,
            self.top + self.y * down,
            self.left + (self.x + self.shape.width) * across,
            self.top + (self.y + self.shape.height) * down,
        )


@dataclass(frozen=True)
class SizeCondition:
    """What SDXL is conditioned on (Podell et al. 2023, section 2.2), in pixels.

    What is left of, above and right of the crop is negative where an image is padded.
    """

    height: int
    """Of the whole image as stored, as is `width`."""
    width: int
    top: int
    """Rows above the crop, after resizing."""
    left: int
    right: int
    target_height: int
    target_width: int

    @classmethod
    def of(cls, frame: Frame, width: int, height: int) -> Self:
        """Of a frame of an image of this size."""
        across = frame.resized.width / frame.canvas.width
        down = frame.resized.height / frame.canvas.height
        return cls(
            height,
            width,
            round(frame.top * down) + frame.y,
            round(frame.left * across) + frame.x,
            round((width - frame.left - frame.canvas.width) * across)
            + (frame.resized.width - frame.x - frame.shape.width),
            frame.shape.height,
            frame.shape.width,
        )

    def mirrored(self) -> Self:
        """Of the mirrored image."""
        return replace(self, left=self.right, right=self.left)

    def values(self) -> tuple[int, ...]:
        """(6,) in the order of `add_time_ids` in diffusers: original size, crop, target size."""
        return (
            *(self.height, self.width),
            *(self.top, self.left),
            *(self.target_height, self.target_width),
        )


def _nearest(numerator: int, denominator: int) -> int:
    """A quotient rounded to the nearest integer, halves upwards."""
    return (2 * numerator + denominator) // (2 * denominator)


def _rounded(value: float) -> int:
    return int(value + 0.5)


def _three_eighths(margin: int) -> tuple[int, int]:
    """The first and last position near the centre, as in DALL-E's listing 2."""
    low = 3 * margin // 8
    return low, max(low, 5 * margin // 8 - 1)


def _between(ends: tuple[int, int], draw: float) -> int:
    """One of the integers from one end to the other, both included."""
    low, high = ends
    return low + min(int(draw * (high - low + 1)), high - low)
