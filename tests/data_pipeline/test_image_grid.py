"""Image grids: every image, enlarged by whole pixels, at its row and column."""

import pytest
import torch
from PIL import Image, ImageFont

from data_pipeline.image_grid import GridAxis, GridCell, image_grid, in_columns, tile_size, wrap


def block(rows, columns, colour):
    images = torch.zeros(rows, columns, 8, 8, 3, dtype=torch.uint8)
    images[..., colour] = 255
    return GridCell(images)


def colours(image):
    return {colour: count for count, colour in image.getcolors(1 << 20)}


def test_cells_with_captions_hold_every_image_enlarged_by_whole_pixels():
    red = torch.zeros(8, 8, 3, dtype=torch.uint8)
    red[..., 0] = 255
    cell = GridCell([[red, red]], "woman firefighter: dark skin tone", correct=True)
    grid = image_grid(
        in_columns([cell] * 5, 3), title="held out", image_labels=["sample", "real"], tile=64
    )
    assert colours(grid)[(255, 0, 0)] == 5 * 2 * 64 * 64
    assert colours(grid)[(0x2E, 0x7D, 0x4F)] >= 5 * 2 * (2 * 64 + 3)


def test_a_labelled_grid_holds_every_image_at_its_row_and_column():
    grid = image_grid(
        [[block(1, 3, 0), block(1, 3, 1)], [block(1, 3, 0), block(1, 3, 2)]],
        rows=GridAxis(["1", "4"], "guidance"),
        columns=GridAxis(["10", "25"], "steps"),
        title="what settings do",
        notes=["seeds 0 to 2"],
        tile=32,
    )
    counts = colours(grid)
    assert counts[(255, 0, 0)] == 2 * 3 * 32 * 32
    assert counts[(0, 255, 0)] == counts[(0, 0, 255)] == 3 * 32 * 32
    # the red column stands left of the others, the blue block below the green one
    pixels = torch.frombuffer(bytearray(grid.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(grid.height, grid.width, 3)

    def positions(channel):
        wanted = torch.zeros(3, dtype=torch.uint8)
        wanted[channel] = 255
        return (pixels == wanted).all(dim=-1).nonzero()

    red, green, blue = (positions(channel) for channel in range(3))
    assert int(red[:, 1].max()) < int(green[:, 1].min()) == int(blue[:, 1].min())
    assert int(green[:, 0].max()) < int(blue[:, 0].min())


def test_long_titles_and_notes_widen_or_wrap_and_are_not_cut():
    cells, axes = [[block(1, 1, 0)]], {"rows": GridAxis(["a"]), "columns": GridAxis(["b"])}
    narrow = image_grid(cells, **axes, title="t", tile=32)
    title = "a title that is a good deal longer than its grid"
    wide = image_grid(cells, **axes, title=title, tile=32)
    assert wide.width > narrow.width
    noted = image_grid(cells, **axes, title=title, notes=["a note " * 20], tile=32)
    assert noted.height > wide.height + 17


def test_tiles_are_whole_multiples_where_images_are_enlarged():
    assert tile_size(32, 4) == 128
    assert tile_size(32, 12) == 96
    assert tile_size(8, 3) == 128
    assert tile_size(256, 9) == 1200 // 9
    assert tile_size(64, 100) == 32


def test_captions_are_broken_to_their_width_and_cut_with_an_ellipsis():
    font = ImageFont.load_default(11)
    lines = wrap("person in a motorized wheelchair facing right: medium-dark", 120, font)
    assert len(lines) == 2
    assert all(font.getlength(line) <= 120 for line in lines)
    assert lines[1].endswith("…")
    assert wrap("fox", 120, font) == ["fox"]
    assert wrap("x" * 200, 120, font)[0].endswith("…")


def test_images_of_other_shapes_keep_their_proportions():
    grid = image_grid([[GridCell([[Image.new("RGB", (40, 20), "red")]])]], tile=80)
    assert colours(grid)[(255, 0, 0)] == 80 * 40


def test_a_grid_without_images_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        image_grid([[]])
