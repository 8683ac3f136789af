"""The shapes of buckets and the nearest one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_pipeline.buckets.shapes import bucket_shapes, cut_off, nearest
from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.geometry.config import BucketConfig
from data_pipeline.geometry.frame import Shape, View

CONFIGS = st.builds(BucketConfig, multiple=st.sampled_from([1, 4, 8]), max_aspect=st.floats(1, 4))


@given(st.integers(1, 8), CONFIGS)
def test_shapes_have_whole_sides_at_most_the_area_and_both_orientations(units, config):
    size = 8 * units
    shapes = bucket_shapes(size, config)
    assert Shape(size, size) in shapes
    assert {Shape(one.height, one.width) for one in shapes} == set(shapes)
    ratios = [one.width / one.height for one in shapes]
    assert ratios == sorted(set(ratios))
    for width, height in shapes:
        assert width % config.multiple == height % config.multiple == 0
        assert width * height <= size * size
        assert max(width, height) <= config.max_aspect * min(width, height)


def test_the_shapes_of_sdxl_near_the_square():
    shapes = bucket_shapes(1024, BucketConfig(multiple=64, max_aspect=2))
    assert {(832, 1216), (896, 1152), (1024, 1024), (1152, 896), (1216, 832)} <= set(shapes)
    assert len(shapes) == 9


def test_the_nearest_shape_is_by_the_ratio_of_proportions():
    shapes = bucket_shapes(64, BucketConfig(multiple=16, max_aspect=3))
    sizes = np.array([(10, 10), (1, 1000), (1000, 1), (30, 20), (20, 30)])
    found = [shapes[one] for one in nearest(sizes, shapes)]
    brute = [
        min(shapes, key=lambda one: abs(np.log(width * one.height / (height * one.width))))
        for width, height in sizes.tolist()
    ]
    assert found == brute
    assert found[0] == (64, 64)


def test_what_is_cut_off_is_what_the_frame_leaves_out():
    shape = Shape(80, 40)
    sizes = np.array([(100, 100), (200, 100), (300, 100), (400, 380)])
    for size, share in zip(sizes.tolist(), cut_off(sizes, shape), strict=True):
        canvas = View(shape, "crop").frame(*size).canvas
        left = 1 - canvas.width * canvas.height / (size[0] * size[1])
        assert share == pytest.approx(left, abs=0.005)


def test_impossible_buckets_are_refused():
    with pytest.raises(ValidationError, match=r"buckets.multiple 24 does not divide size 64"):
        ImageConfig(size=64, buckets=BucketConfig(multiple=24))
    image = {"size": 64, "buckets": {"multiple": 8}}
    for fields, message in [
        ({"lanes": 2}, "set lanes to 1"),
        ({"cache_in_memory": True}, "leave image.buckets out"),
        ({"hint": {"name": "edges"}}, "not hints"),
        ({"arrays": ["codes"]}, "not codes"),
    ]:
        with pytest.raises(ValidationError, match=message):
            DataConfig.model_validate({"url": "x", "image": image, **fields})
