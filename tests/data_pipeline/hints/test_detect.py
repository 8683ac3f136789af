import os
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline.hints.config import KINDS, detector_config, of_record, of_settings
from data_pipeline.hints.detect import detect, encoded, hint_of
from data_pipeline.hints.read import read_image_hint
from mezzotint.common.errors import UserError

WHITE_SQUARE = np.zeros((32, 32, 3), np.uint8)
WHITE_SQUARE[8:24, 8:24] = 255


def found(kind, image=WHITE_SQUARE, **settings):
    return detect(detector_config(kind, settings), image)


@pytest.mark.parametrize("kind", KINDS)
def test_every_detector_gives_levels_of_its_channels_and_reads_its_own_record(kind):
    config = detector_config(kind, {})
    hint = hint_of(config, WHITE_SQUARE)
    assert hint.shape == (config.channels, 32, 32)
    assert hint.dtype == np.float32
    assert 0 <= hint.min() < hint.max() <= 1
    assert of_record(config.record) == config
    assert config.record.library == "opencv-python-headless"
    assert config.record.version.count(".") == 3


def test_edges_are_the_outline_one_pixel_wide():
    edges = found("edges")[..., 0]
    assert set(np.unique(edges)) == {0, 255}
    assert not edges[:6].any()
    assert not edges[11:21, 11:21].any()
    assert (edges[16] > 0).sum() == 2


def test_canny_thresholds_decide_which_edges_stay():
    faint = np.full((32, 32, 3), 100, np.uint8)
    faint[8:24, 8:24] = 115  # a gradient of 60
    assert not found("edges", faint).any()
    assert found("edges", faint, low=20, high=50).any()


def test_sobel_of_a_step_from_black_to_white_is_one():
    step = np.zeros((8, 8, 3), np.uint8)
    step[:, 4:] = 255
    sobel = found("sobel", step)[4, :, 0]
    assert sobel.tolist() == [0, 0, 0, 255, 255, 0, 0, 0]
    assert found("sobel", step // 2, gain=1.0).max() == 127


def test_a_silhouette_is_what_is_not_connected_with_the_border():
    ring = WHITE_SQUARE.copy()
    ring[14:18, 14:18] = 0  # a hole of the background's colour
    silhouette = found("silhouette", ring)[..., 0]
    np.testing.assert_array_equal(silhouette, WHITE_SQUARE[..., 0])
    blank = np.full_like(ring, 200)
    assert not found("silhouette", blank).any()


def test_colours_are_means_of_cells():
    halves = np.zeros((4, 4, 3), np.uint8)
    halves[:, 1] = 100
    grid = found("colours", halves, cells=2)
    assert (grid[:, :2] == 50).all()
    assert (grid[:, 2:] == 0).all()
    np.testing.assert_array_equal(found("colours", halves, cells=64), halves)


def test_scribbles_are_thick_and_have_no_short_strokes():
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:48, 16:48] = 255
    image[4:7, 4:7] = 255  # too small to be drawn
    scribble = found("scribble", image, shortest=0.5)[..., 0]
    assert not scribble[:10, :10].any()
    assert (scribble[32] > 0).sum() >= 4
    assert found("scribble", image, shortest=0.0, blur=0.0)[:10, :10].any()


def test_an_encoded_hint_is_read_as_it_was_made():
    for kind in ("edges", "colours"):
        config = detector_config(kind, {})
        image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        content = encoded(detect(config, image))
        read = read_image_hint(content, "h.png", channels=config.channels, size=16)
        np.testing.assert_array_equal(read, hint_of(config, image))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("edges", ["cells=4"], r"edges.cells: edges has no such setting; it has low \(100\), high"),
        ("colours", ["low=4"], r"colours.low: .* it has cells \(8\)"),
        ("edges", ["low=300"], r"low is 300, above high \(200\)"),
        ("edges", ["low=much"], r"edges.low: Input should be a valid integer"),
        ("edges", ["low"], "--set low: is not NAME=VALUE"),
        ("depth", [], "hint 'depth': there is no such detector; there are edges, sobel"),
    ],
)
def test_settings_of_another_detector_and_impossible_ones_are_refused(kind, settings, message):
    with pytest.raises(UserError, match=message):
        of_settings(kind, settings)


def test_opencv_leaves_the_environment_of_child_processes_as_it_is():
    script = (
        "import os; before = dict(os.environ)\n"
        "from data_pipeline.hints.opencv import opencv\n"
        "assert opencv().Canny\n"
        "assert dict(os.environ) == before"
    )
    for value in (None, "/opt/lib"):
        given = {**os.environ, **({} if value is None else {"LD_LIBRARY_PATH": value})}
        assert (
            subprocess.run([sys.executable, "-c", script], env=given, check=False).returncode == 0
        )
