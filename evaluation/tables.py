"""Pictures in a table with labelled rows and columns: what a setting does to them."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from evaluation.grids import INK, PALE, PAPER, fitted, wrap

EDGE, GAP, SEAM, LINE = 16, 18, 3, 17
RULE = "#bdbdbd"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Axis:
    """What changes along rows or columns, and its values."""

    name: str
    values: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Blocks of pictures (r, c, H, W, 3) uint8 by row and column; all blocks have one shape."""

    cells: Sequence[Sequence[Tensor]]
    rows: Axis
    columns: Axis
    title: str
    notes: Sequence[str] = ()
    """Lines under the table."""

    def draw(self, *, tile: int = 96, widest: int = 170) -> Image.Image:
        """The table; pictures are `tile` pixels wide, row labels wrapped at `widest`."""
        small, plain, large = (ImageFont.load_default(size) for size in (12, 13, 17))
        block_rows, block_columns = self.cells[0][0].shape[:2]
        block = (_span(block_columns, tile), _span(block_rows, tile))
        labels = [wrap(value, widest, plain, 3) for value in self.rows.values]
        margin = _margin([self.rows.name], [line for label in labels for line in label], plain)
        left, top = EDGE + margin, EDGE + 34 + 2 * LINE + 6
        width = left + len(self.columns.values) * (block[0] + GAP) - GAP + EDGE
        width = max(width, 2 * EDGE + int(large.getlength(self.title)))
        notes = [line for note in self.notes for line in wrap(note, width - 2 * EDGE, small, 4)]
        height = top + len(self.cells) * (block[1] + GAP) - GAP
        height += (10 + LINE * len(notes) if notes else 0) + EDGE
        canvas = Image.new("RGB", (width, height), PAPER)
        pen = ImageDraw.Draw(canvas)
        pen.text((EDGE, EDGE - 4), self.title, fill=INK, font=large)
        pen.text((left, EDGE + 30), self.columns.name, fill=PALE, font=plain)
        pen.text((EDGE, EDGE + 30 + LINE), self.rows.name, fill=PALE, font=plain)
        for column, value in enumerate(self.columns.values):
            place = left + column * (block[0] + GAP)
            pen.text((place, EDGE + 30 + LINE), wrap(value, block[0], plain, 1)[0], INK, plain)
            pen.line((place, top - 5, place + block[0] - 1, top - 5), fill=RULE, width=2)
        for row, cells in enumerate(self.cells):
            y = top + row * (block[1] + GAP)
            for number, line in enumerate(labels[row]):
                pen.text((EDGE, y + 2 + number * LINE), line, fill=INK, font=plain)
            for column, cell in enumerate(cells):
                _paste(canvas, cell, left + column * (block[0] + GAP), y, tile)
        for number, line in enumerate(notes):
            place = height - EDGE - LINE * (len(notes) - number)
            pen.text((EDGE, place), line, fill=PALE, font=small)
        return canvas


def tile_for(side: int, pictures: int, widest: int = 1200) -> int:
    """Pixels for a picture of `side`, so that `pictures` abreast are at most about `widest` wide.

    A whole number of times the picture where it is enlarged.
    """
    room = max(widest // max(pictures, 1), 32)
    return side * max(1, min(room // side, 128 // side)) if side <= room else room


def _margin(names: Sequence[str], lines: Sequence[str], font: Font) -> int:
    """Width of the labels of rows, with a gap to the pictures; none if there are none."""
    widest = max(int(font.getlength(text)) for text in [*names, *lines])
    return widest + GAP if widest else 0


def _span(count: int, tile: int) -> int:
    return count * (tile + SEAM) - SEAM


def _paste(canvas: Image.Image, block: Tensor, left: int, top: int, tile: int) -> None:
    for row, pictures in enumerate(block):
        for column, picture in enumerate(pictures):
            place = (left + column * (tile + SEAM), top + row * (tile + SEAM))
            canvas.paste(fitted(picture, tile), place)
