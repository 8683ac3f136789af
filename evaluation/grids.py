"""Picture sheets with captions underneath: what the numbers are about."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mezzotint.inference.images import to_pil

INK, PALE, PAPER, RIGHT, WRONG = "#1c1c1c", "#767676", "#ffffff", "#2e7d4f", "#b4482f"


@dataclass(frozen=True)
class Panel:
    """Pictures (H, W, 3) uint8 side by side over their caption; `exact` colours the underline."""

    caption: str
    pictures: Sequence[Tensor]
    exact: bool | None = None


def sheet(
    panels: Sequence[Panel], *, columns: int, title: str, headings: Sequence[str], tile: int = 96
) -> Image.Image:
    """A sheet of panels, left to right and top to bottom; all hold as many pictures as the first.

    Pictures are enlarged by repeating pixels where they fit a whole number of times, so that the
    sheet shows what the network drew and not what a filter made of it.
    """
    if not panels:
        raise ValueError("a sheet needs at least one panel")
    gap, words = 14, ImageFont.load_default(11)
    width = tile * len(panels[0].pictures) + 4 * (len(panels[0].pictures) - 1)
    height = 16 + tile + 6 + 2 * 14
    rows = -(-len(panels) // columns)
    canvas = Image.new("RGB", (gap + columns * (width + gap), 48 + rows * (height + gap)), PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((gap, 14), title, fill=INK, font=ImageFont.load_default(16))
    for index, panel in enumerate(panels):
        left = gap + index % columns * (width + gap)
        top = 48 + index // columns * (height + gap)
        for place, picture in enumerate(panel.pictures):
            x = left + place * (tile + 4)
            if place < len(headings):
                pen.text((x, top), headings[place], fill=PALE, font=words)
            canvas.paste(fitted(picture, tile), (x, top + 16))
        below = top + 16 + tile + 2
        if panel.exact is not None:
            colour = RIGHT if panel.exact else WRONG
            pen.line((left, below, left + width - 1, below), fill=colour, width=2)
        for line, text in enumerate(wrap(panel.caption, width, words)):
            pen.text((left, below + 4 + 14 * line), text, fill=INK, font=words)
    return canvas


def wrap(
    caption: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, lines: int = 2
) -> list[str]:
    """Caption broken at spaces into at most `lines` lines of `width` pixels; the rest is '…'."""
    done: list[str] = []
    line = ""
    for word in caption.split():
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


def _shorten(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def fitted(picture: Tensor, tile: int) -> Image.Image:
    """A picture (H, W, 3) uint8 at `tile` pixels; where that is a multiple, pixels repeat."""
    image = to_pil(picture)
    whole = tile % image.width == 0
    filter_ = Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    return image.resize((tile, tile), filter_)
