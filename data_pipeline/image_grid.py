"""Grids of images as one image: labelled rows and columns, captions, a title and notes."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

EDGE, GAP, SEAM, LINE = 16, 16, 3, 17
"""Pixels: outer margin, between cells, between the images of a cell, height of a line of text."""
INK, PALE, PAPER, RULE = "#1c1c1c", "#767676", "#ffffff", "#bdbdbd"
CORRECT, WRONG = "#2e7d4f", "#b4482f"
CAPTION_LINES = 2
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
GridImage = Tensor | Image.Image


@dataclass(frozen=True)
class GridCell:
    """Rows of images, each (H, W, 3) uint8 or PIL, over a caption; `correct` colours its underline.

    A tensor (rows, columns, H, W, 3) is such rows of images.
    """

    images: Tensor | Sequence[Sequence[GridImage]]
    caption: str = ""
    correct: bool | None = None


@dataclass(frozen=True)
class GridAxis:
    """Labels of the rows or columns of a grid, and what they are values of."""

    labels: Sequence[str] = ()
    name: str = ""


NO_LABELS = GridAxis()


@dataclass(frozen=True)
class _Layout:
    """Pixels: corner of the first cell, sizes of a cell's images and caption, and of an image."""

    left: int
    top: int
    width: int
    height: int
    caption: int
    tile: int

    def corner(self, row: int, column: int) -> tuple[int, int]:
        x = self.left + column * (self.width + GAP)
        return x, self.top + row * (self.height + self.caption + GAP)


def image_grid(
    cells: Sequence[Sequence[GridCell]],
    *,
    title: str = "",
    rows: GridAxis = NO_LABELS,
    columns: GridAxis = NO_LABELS,
    image_labels: Sequence[str] = (),
    notes: Sequence[str] = (),
    tile: int | None = None,
    max_width: int = 1200,
) -> Image.Image:
    """Rows of cells as one RGB image, on white.

    Images are at most `tile` pixels wide and high (None: `tile_size`), enlarged by repeating pixels
    where they fit a whole number of times, so that no filter hides what a network made.
    `image_labels` name the images inside the cells of a column; `notes` stand below the grid.

    Raises:
        ValueError: no cells.
    """
    blocks = [[_block(cell.images) for cell in row] for row in cells]
    lines = [line for row in blocks for block in row for line in block]
    if not any(lines):
        raise ValueError("an image grid needs at least one image")
    small, plain, large = (ImageFont.load_default(size) for size in (11, 13, 17))
    column_count, across = max(len(row) for row in blocks), max(map(len, lines))
    down = max(len(block) for row in blocks for block in row)
    if tile is None:
        side = max(max(image.size) for line in lines for image in line)
        tile = tile_size(side, column_count * across, max_width)
    row_labels = [wrap(label, 170, plain, 3) for label in rows.labels]
    margin = _widest([rows.name, *(line for label in row_labels for line in label)], plain)
    has_captions = any(cell.caption for row in cells for cell in row)
    headers = 2 * bool(title) + bool(columns.name) + bool(rows.name or columns.labels)
    layout = _Layout(
        left=EDGE + (margin + GAP if margin else 0),
        top=EDGE + LINE * (headers + bool(image_labels)) + (4 if columns.labels else 0),
        width=across * (tile + SEAM) - SEAM,
        height=down * (tile + SEAM) - SEAM,
        caption=6 + 14 * CAPTION_LINES if has_captions else 0,
        tile=tile,
    )
    right = layout.corner(0, column_count)[0] - GAP
    width = EDGE + max(right, EDGE + _widest([title], large))
    note_lines = [line for note in notes for line in wrap(note, width - 2 * EDGE, small, 4)]
    below = layout.corner(len(cells), 0)[1] - GAP + (10 if note_lines else 0)
    canvas = Image.new("RGB", (width, below + LINE * len(note_lines) + EDGE), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((EDGE, EDGE - 4), title, INK, large)
    _draw_headers(pen, layout, rows.name, columns, image_labels, column_count)
    for row, labels in enumerate(row_labels):
        y = layout.corner(row, 0)[1]
        pen.multiline_text((EDGE, y + 2), "\n".join(labels), INK, plain, spacing=3)
    for row, row_cells in enumerate(cells):
        for column, cell in enumerate(row_cells):
            _draw_cell(canvas, cell, blocks[row][column], layout.corner(row, column), layout)
    for number, line in enumerate(note_lines):
        pen.text((EDGE, below + number * LINE), line, PALE, small)
    return canvas


def in_columns(cells: Sequence[GridCell], columns: int) -> list[Sequence[GridCell]]:
    """Cells as rows of `columns`, left to right and top to bottom."""
    return [cells[start : start + columns] for start in range(0, len(cells), columns)]


def tile_size(side: int, across: int, max_width: int = 1200) -> int:
    """Pixels for an image of `side`, so that `across` of them are at most about `max_width` wide.

    A multiple of `side` where the image is enlarged, to at most 128 pixels.
    """
    available = max(max_width // max(across, 1), 32)
    return side * max(1, min(available // side, 128 // side)) if side <= available else available


def wrap(text: str, width: int, font: Font, lines: int = 2) -> list[str]:
    """Text broken at spaces into at most `lines` lines of `width` pixels; the rest is '…'."""
    done: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width or not line:
            line = longer
        else:
            done.append(line)
            line = word
    done.append(line)
    if len(done) > lines:
        done = [*done[: lines - 1], f"{done[lines - 1]} …"]
    return [_shorten(text, width, font) for text in done]


def _shorten(text: str, width: int, font: Font) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _widest(texts: Sequence[str], font: Font) -> int:
    return max(int(font.getlength(text)) for text in texts)


def _block(images: Tensor | Sequence[Sequence[GridImage]]) -> list[list[Image.Image]]:
    return [[_as_pil(image) for image in line] for line in images]


def _as_pil(image: GridImage) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image.cpu().numpy())


def _draw_headers(
    pen: ImageDraw.ImageDraw,
    layout: _Layout,
    row_name: str,
    columns: GridAxis,
    image_labels: Sequence[str],
    column_count: int,
) -> None:
    """The names of both axes, and the labels above the columns and their images."""
    small, plain = (ImageFont.load_default(size) for size in (11, 13))
    y = layout.top - LINE * (1 + bool(image_labels)) - (4 if columns.labels else 0)
    pen.text((layout.left, y - LINE), columns.name, PALE, plain)
    pen.text((EDGE, y), row_name, PALE, plain)
    for column in range(column_count):
        x = layout.corner(0, column)[0]
        if column < len(columns.labels):
            label = wrap(columns.labels[column], layout.width, plain, 1)[0]
            pen.text((x, y), label, INK, plain)
            pen.line((x, y + LINE, x + layout.width - 1, y + LINE), RULE, 2)
        for index, label in enumerate(image_labels):
            pen.text((x + index * (layout.tile + SEAM), layout.top - LINE), label, PALE, small)


def _draw_cell(
    canvas: Image.Image,
    cell: GridCell,
    block: Sequence[Sequence[Image.Image]],
    corner: tuple[int, int],
    layout: _Layout,
) -> None:
    """The images of a cell, its underline and its caption."""
    left, top = corner
    pen, font, tile = ImageDraw.Draw(canvas), ImageFont.load_default(11), layout.tile
    for row, line in enumerate(block):
        for column, image in enumerate(line):
            fitted = _fit(image, tile)
            x = left + column * (tile + SEAM) + (tile - fitted.width) // 2
            canvas.paste(fitted, (x, top + row * (tile + SEAM) + tile - fitted.height))
    below = top + layout.height + 2
    if cell.correct is not None:
        colour = CORRECT if cell.correct else WRONG
        pen.line((left, below, left + layout.width - 1, below), colour, 2)
    text = "\n".join(wrap(cell.caption, layout.width, font, CAPTION_LINES))
    pen.multiline_text((left, below + 4), text, INK, font, spacing=2)


def _fit(image: Image.Image, tile: int) -> Image.Image:
    """The image with its longer side at `tile` pixels; where that is a multiple, pixels repeat."""
    longer = max(image.size)
    whole = tile % longer == 0
    filter_ = Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    width, height = (max(1, round(side * tile / longer)) for side in image.size)
    return image.resize((width, height), filter_)
