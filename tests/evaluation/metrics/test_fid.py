"""The Fréchet distance against closed forms."""

import math

import pytest
import torch

from evaluation.metrics import fid


def gaussian(mean, covariance, n=10_000):
    return fid.Gaussian(torch.tensor(mean).double(), torch.tensor(covariance).double(), n)


def test_two_gaussians_with_commuting_covariances_have_the_closed_form_distance():
    a = gaussian([0.0, 1.0, -2.0], [[4.0, 0, 0], [0, 9.0, 0], [0, 0, 1.0]])
    b = gaussian([3.0, 1.0, 0.0], [[1.0, 0, 0], [0, 16.0, 0], [0, 0, 0.25]])
    expected = 9 + 4 + (2 - 1) ** 2 + (3 - 4) ** 2 + (1 - 0.5) ** 2
    assert fid.frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_two_gaussians_with_rotated_covariances_have_the_closed_form_distance():
    # In two dimensions tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)).
    a_cov, b_cov = [[2.0, 0.9], [0.9, 1.0]], [[1.0, -0.4], [-0.4, 3.0]]
    product = torch.tensor(a_cov).double() @ torch.tensor(b_cov).double()
    root = math.sqrt(product.trace() + 2 * math.sqrt(torch.linalg.det(product)))
    expected = 0.5**2 + (2 + 1 + 1 + 3) - 2 * root
    a, b = gaussian([0.0, 0.5], a_cov), gaussian([0.0, 0.0], b_cov)
    assert fid.frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)
    assert fid.frechet_distance(b, a) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [50, 400], ids=["fewer images than dimensions", "more"])
def test_identical_sets_are_at_distance_zero(count):
    features = torch.randn(count, 128, generator=torch.Generator().manual_seed(0)).relu()
    same = fid.frechet_distance(fid.fit(features), fid.fit(features.clone()))
    assert abs(same) < 1e-3


def test_the_distance_equals_a_matrix_square_root_in_complex_arithmetic():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    rng = torch.Generator().manual_seed(1)
    a = fid.fit(torch.randn(300, 20, generator=rng) @ torch.randn(20, 20, generator=rng))
    b = fid.fit(torch.randn(300, 20, generator=rng) + 1.0)
    root = torch.from_numpy(scipy_linalg.sqrtm((a.covariance @ b.covariance).numpy()).real)
    expected = (
        (a.mean - b.mean).square().sum()
        + a.covariance.trace()
        + b.covariance.trace()
        - 2 * root.trace()
    )
    assert fid.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_few_images_for_many_dimensions_come_with_a_warning():
    rng = torch.Generator().manual_seed(2)
    few, many = (
        fid.fit(torch.randn(10, 16, generator=rng)),
        fid.fit(torch.randn(40, 16, generator=rng)),
    )
    assert "10 images for 16 feature dimensions" in (fid.sample_size_warning(few, many) or "")
    assert fid.sample_size_warning(many, many) is None


def test_a_covariance_of_one_image_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        fid.fit(torch.zeros(1, 4))
