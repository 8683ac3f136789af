"""Tables of pictures with labelled rows and columns."""

import torch

from evaluation.tables import Axis, Table, tile_for


def block(rows, columns, colour):
    pictures = torch.zeros(rows, columns, 8, 8, 3, dtype=torch.uint8)
    pictures[..., colour] = 255
    return pictures


def test_a_table_holds_every_picture_enlarged_by_whole_pixels():
    table = Table(
        cells=[[block(1, 3, 0), block(1, 3, 1)], [block(1, 3, 0), block(1, 3, 2)]],
        rows=Axis("guidance", ["1", "4"]),
        columns=Axis("steps", ["10", "25"]),
        title="what settings do",
        notes=["seeds 0 to 2"],
    )
    picture = table.draw(tile=32)
    counts = {colour: count for count, colour in picture.getcolors(1 << 20)}
    assert counts[(255, 0, 0)] == 2 * 3 * 32 * 32
    assert counts[(0, 255, 0)] == counts[(0, 0, 255)] == 3 * 32 * 32
    # the red column stands left of the others, the blue block below the green one
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(picture.height, picture.width, 3)

    def places(channel):
        wanted = torch.zeros(3, dtype=torch.uint8)
        wanted[channel] = 255
        return (pixels == wanted).all(dim=-1).nonzero()

    red, green, blue = (places(channel) for channel in range(3))
    assert int(red[:, 1].max()) < int(green[:, 1].min()) == int(blue[:, 1].min())
    assert int(green[:, 0].max()) < int(blue[:, 0].min())


def test_long_titles_and_notes_widen_or_wrap_and_are_not_cut():
    narrow = Table([[block(1, 1, 0)]], Axis("", ["a"]), Axis("", ["b"]), "t").draw(tile=32)
    words = "a title that is a good deal longer than its table"
    wide = Table([[block(1, 1, 0)]], Axis("", ["a"]), Axis("", ["b"]), words).draw(tile=32)
    assert wide.width > narrow.width
    noted = Table(
        [[block(1, 1, 0)]], Axis("", ["a"]), Axis("", ["b"]), words, ["a note " * 20]
    ).draw(tile=32)
    assert noted.height > wide.height + 17


def test_tiles_are_whole_multiples_where_pictures_are_enlarged():
    assert tile_for(32, 4) == 128
    assert tile_for(32, 12) == 96
    assert tile_for(8, 3) == 128
    assert tile_for(256, 9) == 1200 // 9
    assert tile_for(64, 100) == 32
