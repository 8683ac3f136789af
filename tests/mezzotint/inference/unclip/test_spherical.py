"""Spherical interpolation and text differences."""

import math

import pytest
import torch

from mezzotint.common.errors import UserError
from mezzotint.inference.unclip.spherical import (
    rotate_towards,
    slerp,
    slerp_noise,
    text_difference,
    unit,
)


def vectors(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_between_unit_vectors_all_are_unit_vectors_at_equal_angles():
    a, b = unit(vectors(5, 64)), unit(vectors(5, 64, seed=1))
    path = torch.stack([slerp(a, b, step / 8) for step in range(9)])
    assert float((path.norm(dim=-1) - 1).abs().max()) < 1e-15
    angles = (path[:-1] * path[1:]).sum(dim=-1).acos()
    assert float((angles - angles[0]).abs().max()) < 1e-12
    whole = (a * b).sum(dim=-1).acos()
    assert torch.allclose(angles.sum(dim=0), whole, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_are_the_given_vectors_bit_for_bit(dtype):
    a, b = vectors(5, 64).to(dtype), 3 * vectors(5, 64, seed=1).to(dtype)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)


def test_lengths_change_linearly():
    a, b = vectors(5, 64), 3 * vectors(5, 64, seed=1)
    found = slerp(a, b, 0.25).norm(dim=-1)
    assert torch.allclose(found, 0.75 * a.norm(dim=-1) + 0.25 * b.norm(dim=-1))


def test_vectors_of_one_direction_and_opposite_ones_stay_finite():
    a = vectors(3, 8)
    assert torch.allclose(slerp(a, 2 * a, 0.5), 1.5 * a)
    assert bool(slerp(a, -a, 0.5).isfinite().all())
    assert bool(slerp(torch.zeros_like(a), a, 0.5).isfinite().all())


def test_interpolated_noise_is_as_large_as_noise():
    a, b = vectors(2, 3, 16, 16), vectors(2, 3, 16, 16, seed=1)
    middle = slerp_noise(a, b, 0.5)
    assert middle.shape == a.shape
    assert abs(float(middle.std()) - 1) < 0.05
    # the mean of both would be smaller by the square root of 2
    assert abs(float(((a + b) / 2).std()) - math.sqrt(0.5)) < 0.05


def test_a_text_difference_is_the_normalised_difference_of_directions():
    source, target = vectors(64), 5 * vectors(64, seed=1)
    direction = text_difference(source, target)
    assert torch.allclose(direction, unit(unit(target) - unit(source)))


def test_at_theta_0_an_embedding_stays_and_at_1_it_has_the_direction():
    z, direction = vectors(3, 64), unit(vectors(64, seed=1))
    assert torch.equal(rotate_towards(z, direction, 0.0), z)
    turned = rotate_towards(z, direction, 0.5)
    assert torch.allclose(turned.norm(dim=-1), z.norm(dim=-1))
    before, after = ((unit(each) @ direction).acos() for each in (z, turned))
    assert torch.allclose(after, before / 2)
    assert torch.allclose(unit(rotate_towards(z, direction, 1.0)), direction.expand_as(z))


def test_captions_that_read_the_same_are_refused():
    z = vectors(64)
    with pytest.raises(UserError, match="reads both captions as the same"):
        text_difference(z, 2 * z)
