"""Conditioning augmentation."""

import math

import pytest
import torch
from pydantic import ValidationError

from models.diffusion.degradation import (
    BlurAugmentation,
    GaussianAugmentation,
    gaussian_kernel,
)
from models.torchvision_compat import ensure_torchvision


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


IMAGE = torch.rand(2, 3, 8, 8, generator=rng()) * 2 - 1


@pytest.mark.parametrize("augmentation", [GaussianAugmentation(), BlurAugmentation()])
def test_level_zero_changes_nothing(augmentation):
    assert torch.equal(augmentation(IMAGE, torch.zeros(2), rng()), IMAGE)


def test_gaussian_levels_are_uniform_up_to_the_highest():
    levels = GaussianAugmentation(max_level=0.4).levels(20_000, rng())
    assert float(levels.min()) >= 0
    assert float(levels.max()) <= 0.4
    assert float(levels.mean()) == pytest.approx(0.2, abs=3 * 0.4 / math.sqrt(12 * 20_000))


def test_gaussian_augmentation_is_the_forward_process():
    augmentation = GaussianAugmentation()
    low = torch.full((40_000, 1, 1, 1), 0.6)
    got = augmentation(low, torch.full((40_000,), 0.3), rng())
    angle = 0.3 * math.pi / 2
    assert float(got.mean()) == pytest.approx(
        math.cos(angle) * 0.6, abs=3 * math.sin(angle) / math.sqrt(40_000)
    )
    assert float(got.var()) == pytest.approx(math.sin(angle) ** 2, rel=0.03)


def test_blur_is_applied_to_half_of_the_training_images():
    levels = BlurAugmentation().levels(4096, rng())
    assert set(levels.tolist()) == {0.0, 1.0}
    assert float(levels.mean()) == pytest.approx(0.5, abs=0.03)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValidationError, match="odd"):
        BlurAugmentation(kernel=4)


def test_blur_is_torchvisions_gaussian_blur():
    ensure_torchvision()
    from torchvision.transforms.v2.functional import gaussian_blur

    kernel = gaussian_kernel(3, 0.6)
    assert float(kernel.sum()) == pytest.approx(1.0, abs=1e-12)
    got = BlurAugmentation()(IMAGE, torch.tensor([1.0, 0.0]), rng())
    assert torch.allclose(got[0], gaussian_blur(IMAGE, [3, 3], [0.6, 0.6])[0], atol=1e-6)
    assert torch.equal(got[1], IMAGE[1])
