"""Which part of an image a view shows."""

import io
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from data_pipeline.config import ImageConfig
from data_pipeline.geometry.config import CropConfig
from data_pipeline.geometry.frame import Shape, View
from data_pipeline.images import decode_view
from data_pipeline.sample_order import crop_draws

DVAE = CropConfig(position="random", resize=(9 / 8, 12 / 8))
PRIOR = CropConfig(position="near_centre", resize=(1, 9 / 8))
SIDES = st.integers(1, 300)
UNIT = st.floats(0, 1, exclude_max=True)
SHAPES = st.builds(Shape, st.integers(1, 40), st.integers(1, 40))
CROPS = st.sampled_from([None, CropConfig(position="centre"), DVAE, PRIOR])


def png(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return content.getvalue()


def jpeg(photograph: bytes) -> bytes:
    content = io.BytesIO()
    Image.open(io.BytesIO(photograph)).convert("RGB").save(content, "JPEG")
    return content.getvalue()


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(SIDES, SIDES, SHAPES, CROPS, st.tuples(*[UNIT] * 5))
def test_a_crop_lies_inside_the_image_and_has_the_proportions_of_its_shape(
    width, height, shape, crop, draws
):
    frame = View(shape, "crop", crop, draws).frame(width, height)
    left, top, right, bottom = frame.box
    assert 0 <= frame.left <= left < right <= frame.left + frame.canvas.width + 1e-9
    assert 0 <= frame.top <= top < bottom <= frame.top + frame.canvas.height + 1e-9
    assert frame.left + frame.canvas.width <= width
    assert frame.top + frame.canvas.height <= height
    across, down = frame.canvas
    assert across == width or down == height
    assert abs(across * shape.height - down * shape.width) <= max(shape) or 1 in frame.canvas


@given(SIDES, SIDES, SHAPES)
def test_padding_shows_the_whole_image(width, height, shape):
    frame = View(shape, "pad").frame(width, height)
    assert frame.resized == frame.shape == shape
    assert frame.left <= 0
    assert frame.left + frame.canvas.width >= width
    assert frame.top <= 0
    assert frame.top + frame.canvas.height >= height


def test_dalle_dvae_crops_a_square_anywhere_and_a_part_of_its_resized_form():
    """Listing 1 of the paper: t from 9/8 to 12/8 of the target, both included."""
    sides, lefts = set(), set()
    for sample in range(3000):
        view = View(Shape(16, 16), "crop", DVAE, crop_draws(5, 0, 0, sample))
        frame = view.frame(70, 60)
        assert frame.canvas == (60, 60)
        assert frame.top == 0
        lefts.add(frame.left)
        sides.add(frame.resized.width)
        assert frame.resized.width == frame.resized.height
    assert lefts == set(range(11))
    assert sides == set(range(18, 25))


def test_dalle_prior_crops_near_the_centre():
    """Listing 2: the offset from 3/8 to 5/8 of what is cut off, t from 1 to 9/8 of the target."""
    sides, lefts = set(), set()
    for sample in range(3000):
        view = View(Shape(16, 16), "crop", PRIOR, crop_draws(5, 0, 0, sample))
        frame = view.frame(140, 60)
        lefts.add(frame.left)
        sides.add(frame.resized.width)
        assert frame.resized.width == frame.resized.height
    assert lefts == set(range(30, 50))
    assert sides == {16, 17, 18}


def test_an_image_smaller_than_the_largest_side_is_not_enlarged_beyond_itself():
    for sample in range(50):
        view = View(Shape(16, 16), "crop", DVAE, crop_draws(5, 0, 0, sample))
        assert view.frame(19, 19).scale >= 1
        assert view.frame(9, 9).box == (0, 0, 9, 9)


@pytest.mark.parametrize("filter_name", ["box", "bicubic"])
def test_a_part_of_the_resized_square_is_what_resizing_and_then_cutting_gives(filter_name):
    image = noise(67, 53)
    config = ImageConfig(size=16, fit="crop", filter=filter_name, crop=DVAE)
    resampling = {"box": Image.Resampling.BOX, "bicubic": Image.Resampling.BICUBIC}[filter_name]
    for sample in range(20):
        draws = crop_draws(5, 3, 1, sample)
        view = View(Shape(16, 16), "crop", DVAE, draws)
        found, size = decode_view(png(image), config, "x", view)
        left, side = int(draws[0] * 15), 18 + int(draws[2] * 7)
        x, y = (int(draw * (side - 16 + 1)) for draw in draws[3:])
        square = Image.fromarray(image[:, left : left + 53])
        whole = np.asarray(square.resize((side, side), resampling))
        assert np.array_equal(whole[y : y + 16, x : x + 16], found)
        assert size.values() == (53, 67, y, round(left * side / 53 + x), 16, 16)


@pytest.mark.parametrize("crop", [DVAE, PRIOR])
def test_a_scaled_decoding_of_a_crop_is_about_that_of_the_whole_image(crop):
    content = jpeg((files("sklearn.datasets") / "images" / "china.jpg").read_bytes())
    for sample in range(8):
        view = View(Shape(32, 32), "crop", crop, crop_draws(5, 0, 0, sample))
        (whole, size), (scaled, other) = (
            decode_view(
                content,
                ImageConfig(size=32, fit="crop", scaled_decoding=on),
                "x",
                view,
            )
            for on in (False, True)
        )
        away = np.abs(whole.astype(int) - scaled)
        assert 0 < away.mean() < 1.5
        assert size == other


def test_draws_depend_on_seed_epoch_and_sample_alone():
    assert crop_draws(5, 1, 2, 3) == crop_draws(5, 1, 2, 3)
    assert len({crop_draws(5, *key) for key in [(1, 2, 3), (2, 1, 3), (1, 3, 2), (3, 2, 1)]}) == 4
    assert np.mean([crop_draws(5, 0, 0, each) for each in range(400)]) == pytest.approx(
        0.5, abs=0.03
    )


def test_impossible_crops_are_refused():
    with pytest.raises(ValidationError, match="crop needs fit: crop"):
        ImageConfig(size=4, crop=DVAE)
    with pytest.raises(ValidationError, match="1 <= low <= high <= 8"):
        CropConfig(resize=(1.5, 1.2))
