import numpy as np
import pytest
import torch

from data_pipeline.hints.config import KINDS, detector_config
from data_pipeline.hints.detect import hint_of
from data_pipeline.hints.fidelity import (
    control_fidelity,
    edge_f1,
    intersection_over_union,
    pixels,
    tolerance,
)
from mezzotint.common.errors import UserError


def column(*columns, size=16):
    edges = np.zeros((1, size, size), np.float32)
    edges[:, :, list(columns)] = 1
    return edges


def test_edge_f1_forgives_one_pixel_at_64_and_the_published_share_of_the_diagonal_above():
    assert tolerance(64, 64) == 1
    assert tolerance(300, 400) == pytest.approx(3.75)
    assert edge_f1(column(5), column(5)) == 1
    assert edge_f1(column(5), column(6)) == 1
    assert edge_f1(column(5), column(7)) == 0
    assert edge_f1(column(5), column(6), limit=0) == 0
    assert edge_f1(column(5, 8), column(5, 9), limit=0) == 0.5


def test_edge_f1_is_the_harmonic_mean_of_precision_and_recall():
    # one of three columns found is right (precision 1/3), one of two is found (recall 1/2)
    assert edge_f1(column(2, 6), column(2, 10, 14)) == pytest.approx(2 / (3 + 2))


def test_empty_edge_maps_agree_with_each_other_alone():
    empty = column()
    assert edge_f1(empty, empty) == 1
    assert edge_f1(empty, column(3)) == edge_f1(column(3), empty) == 0


def test_intersection_over_union():
    assert intersection_over_union(column(1, 2, 3), column(2, 3, 4)) == 0.5
    assert intersection_over_union(column(), column()) == 1
    assert intersection_over_union(column(1), column()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_of_a_hint_follows_it_exactly_and_another_less(kind):
    config = detector_config(kind, {})
    images = torch.full((2, 3, 32, 32), -1.0, device="cpu")
    images[0, :, 8:24, 8:24] = 1
    images[1, :, 2:8, 2:30] = 1
    hints = torch.from_numpy(np.stack([hint_of(config, one) for one in pixels(images)]))
    same = control_fidelity(config.record, hints, images)
    other = control_fidelity(config.record, hints.flip(0), images)
    assert same.values.tolist() == [1.0, 1.0]
    assert other.mean < 0.95
    assert same.metric == other.metric


def test_fidelity_needs_a_detector_and_its_hints():
    images = torch.zeros(1, 3, 8, 8, device="cpu")
    with pytest.raises(UserError, match="a user's own: no detector is recorded"):
        control_fidelity(None, images[:, :1], images)
    edges = detector_config("edges", {}).record
    with pytest.raises(UserError, match=r"hints of edges are \(1, 1, 8, 8\)"):
        control_fidelity(edges, images, images)
