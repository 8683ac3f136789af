"""open_clip's preprocessing against open_clip itself, on real images."""

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.images import open_rgb, square
from mezzotint.inference.images import from_bytes
from models.pretrained.preprocessing import prepare
from models.pretrained.settings import ImagePreprocessing
from models.torchvision_compat import ensure_torchvision

TAGS = (
    ("ViT-B-32", "openai"),
    ("ViT-L-14", "laion2b_s32b_b82k"),
    ("ViT-H-14", "dfn5b"),
    ("MobileCLIP-S1", "datacompdr"),
    ("MobileCLIP2-S3", "dfndr2b"),
    ("PE-Core-B-16", "meta"),
    ("ViT-B-16-SigLIP", "webli"),
    ("ViT-L-14-CLIPA", "datacomp1b"),
)
LEVELS = 1.1
"""Pillow rounds to 8 bits after each side that it resizes."""


@pytest.fixture(scope="module")
def images():
    """Real images of 160 pixels, on white."""
    dataset = open_dataset(DataConfig(url="data/emoji"))
    opened = [
        open_rgb(dataset.member(index, "png"), "emoji", max_pixels=10**6)
        for index in range(0, len(dataset), len(dataset) // 20)
    ]
    return [Image.fromarray(square(each, ImageConfig(size=160))) for each in opened]


def theirs(image, settings, size):
    """open_clip's preprocessing."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    return image_transform_v2(PreprocessCfg(size=size, **settings.model_dump()), is_train=False)(
        image
    )


def worst(images, settings, size):
    """The largest difference in levels of 255, over all images."""
    height, width = (size, size) if isinstance(size, int) else size
    deviations = torch.tensor(settings.std)[:, None, None]
    found = 0.0
    for image in images:
        wanted = theirs(image, settings, size)
        ours = prepare(from_bytes(torch.tensor(np.asarray(image)))[None], settings, height, width)
        assert ours.shape[1:] == wanted.shape
        found = max(found, float(((ours[0] - wanted).abs() * deviations).max()) * 255)
    return found


@pytest.mark.parametrize(("architecture", "tag"), TAGS)
def test_square_images_are_prepared_as_by_open_clip(images, architecture, tag):
    ensure_torchvision()
    from open_clip.pretrained import get_pretrained_cfg

    known = get_pretrained_cfg(architecture, tag)
    fields = set(ImagePreprocessing.model_fields) & set(known)
    settings = ImagePreprocessing.model_validate({name: known[name] for name in fields})
    for size in (224, 64):
        assert worst(images, settings, size) < LEVELS


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [48, (40, 64)])
def test_other_shapes_of_image_and_tower_too(images, mode, size):
    ensure_torchvision()
    settings = ImagePreprocessing(
        mean=0.4, std=(0.5, 0.6, 0.7), interpolation="bilinear", resize_mode=mode, fill_color=200
    )
    tall = [image.crop((20, 0, 75, 160)) for image in images[:6]]
    wide = [image.crop((0, 30, 30, 53)) for image in images[:6]]
    if mode == "shortest" and isinstance(size, tuple):
        assert worst(wide, settings, size) < LEVELS  # bicubic there, whatever is set
    else:
        assert worst(tall + wide, settings, size) < LEVELS


def test_random_interpolation_is_bicubic_in_inference(images):
    bicubic = ImagePreprocessing(mean=0.5, std=0.5, interpolation="bicubic")
    random = bicubic.model_copy(update={"interpolation": "random"})
    pixels = from_bytes(torch.tensor(np.asarray(images[0])))[None]
    assert torch.equal(prepare(pixels, bicubic, 32, 32), prepare(pixels, random, 32, 32))
