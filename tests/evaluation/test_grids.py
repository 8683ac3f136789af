"""Picture sheets."""

import torch
from PIL import ImageFont

from evaluation.grids import Panel, sheet, wrap


def test_a_sheet_holds_every_picture_enlarged_by_whole_pixels():
    red = torch.zeros(8, 8, 3, dtype=torch.uint8)
    red[..., 0] = 255
    picture = sheet(
        [Panel("woman firefighter: dark skin tone", [red, red], exact=True)] * 5,
        columns=3,
        title="held out",
        headings=["drawn", "real"],
        tile=64,
    )
    counts = {colour: count for count, colour in picture.getcolors(1 << 20)}
    assert counts[(255, 0, 0)] == 5 * 2 * 64 * 64


def test_captions_are_broken_to_their_width_and_cut_with_an_ellipsis():
    font = ImageFont.load_default(11)
    lines = wrap("person in a motorized wheelchair facing right: medium-dark", 120, font)
    assert len(lines) == 2
    assert all(font.getlength(line) <= 120 for line in lines)
    assert lines[1].endswith("…")
    assert wrap("fox", 120, font) == ["fox"]
    assert wrap("x" * 200, 120, font)[0].endswith("…")
