"""Conditioning augmentation."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from models.diffusion.bsr.degrade import gaussian_kernel_2d
from models.diffusion.bsr.jpeg import jpeg
from models.diffusion.degradation import (
    BlurAugmentation,
    BSRAugmentation,
    GaussianAugmentation,
    gaussian_kernel,
)
from models.nn.random import BatchGenerator
from models.torchvision_compat import ensure_torchvision


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


IMAGE = torch.rand(2, 3, 8, 8, generator=rng()) * 2 - 1


@pytest.mark.parametrize(
    "augmentation", [GaussianAugmentation(), BlurAugmentation(), BSRAugmentation()]
)
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


PICTURE = torch.stack(
    [
        torch.sin(torch.arange(36.0)[:, None] / 5 + colour) * torch.cos(torch.arange(28.0) / 4)
        for colour in (0.0, 1.0, 2.5)
    ]
)
"""(3, 36, 28) in [-1, 1]."""


def test_bsr_is_reproducible_under_a_seed_and_does_not_leave_the_range():
    low, level = PICTURE.expand(12, -1, -1, -1), torch.ones(12)
    found = BSRAugmentation()(low, level, rng(1))
    assert torch.equal(found, BSRAugmentation()(low, level, rng(1)))
    assert not torch.equal(found, BSRAugmentation()(low, level, rng(2)))
    assert found.shape == low.shape
    assert float(found.abs().max()) <= 1
    errors = (found - low).square().mean(dim=(1, 2, 3))
    assert len(errors.unique()) == 12  # of other strengths and orders
    assert float(errors.min()) > 0
    weak = BSRAugmentation(strength=0.1)(low, level, rng(1))
    assert float((weak - low).square().mean()) < 0.5 * float(errors.mean())
    # neither inference nor autocast changes what is computed of a seed later
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert BSRAugmentation()(low[:2], level[:2], rng(1)).dtype == torch.float32


def test_bsr_of_an_image_does_not_depend_on_its_neighbours():
    low, level = PICTURE.expand(3, -1, -1, -1), torch.tensor([1.0, 0.0, 1.0])
    own = [rng(seed) for seed in range(3)]
    together = BSRAugmentation()(low, level, BatchGenerator.of(own))
    alone = BSRAugmentation()(low[2:], level[2:], BatchGenerator.of([rng(2)]))
    assert torch.equal(together[2:], alone)
    assert torch.equal(together[1], low[1])


def test_bsr_is_applied_to_half_of_the_training_images():
    levels = BSRAugmentation().levels(4096, rng())
    assert set(levels.tolist()) == {0.0, 1.0}
    assert float(levels.mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_is_what_pillow_writes_and_reads(quality):
    levels = ((PICTURE + 1) * 127.5).round()
    file = io.BytesIO()
    array = levels.permute(1, 2, 0).to(torch.uint8).numpy()
    Image.fromarray(array).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    expected = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1).float()
    difference = (jpeg(levels / 255, quality) * 255 - expected).abs()
    assert float(difference.mean()) < 1  # of rounding colours to 8 bits in between
    assert float(difference.max()) <= 8


def test_the_anisotropic_kernel_has_its_two_variances():
    kernel = gaussian_kernel_2d(41, 9.0, 2.0, math.pi / 6)
    place = torch.arange(41, dtype=torch.float64) - 20
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    rows = float((kernel.sum(1) * place**2).sum())
    columns = float((kernel.sum(0) * place**2).sum())
    assert rows + columns == pytest.approx(11, rel=1e-4)
    assert columns == pytest.approx(9 * 0.75 + 2 * 0.25, rel=1e-4)
