"""JPEG files that libjpeg-turbo decodes alone give the values that Pillow gives."""

import io
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline import images
from data_pipeline.colour import jpeg
from data_pipeline.config import ImageConfig
from data_pipeline.images import decode, open_rgb
from mezzotint.common.errors import UserError

LIMIT = 50_000_000
PHOTOGRAPHS = {
    "grace_hopper": files("matplotlib") / "mpl-data" / "sample_data" / "grace_hopper.jpg",
    "china": files("sklearn.datasets") / "images" / "china.jpg",
    "flower": files("sklearn.datasets") / "images" / "flower.jpg",
}


@pytest.fixture(scope="module", params=PHOTOGRAPHS)
def photograph(request) -> bytes:
    return PHOTOGRAPHS[request.param].read_bytes()


def by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def encoded(image: Image.Image, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", **options)
    return content.getvalue()


def by_turbo(content: bytes) -> np.ndarray | None:
    return None if jpeg.plain_size(content) is None else images._decode_plain(content)


def test_photographs_as_they_are(photograph):
    assert np.array_equal(
        np.asarray(open_rgb(photograph, "x", max_pixels=LIMIT)), by_pillow(photograph)
    )


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [30, 92, 100])
def test_photographs_encoded_again(photograph, quality, subsampling, progressive):
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    for size in ((256, 256), (101, 67), (15, 33), (1, 1)):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        content = encoded(image.resize(size), **options)
        assert jpeg.plain_size(content) == size
        assert np.array_equal(by_turbo(content), by_pillow(content))
        grey = encoded(image.resize(size).convert("L"), quality=quality, progressive=progressive)
        assert np.array_equal(by_turbo(grey), by_pillow(grey))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 100), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_noise_of_any_size(width, height, quality, seed):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(values), quality=quality)
    assert np.array_equal(by_turbo(content), by_pillow(content))


def test_what_else_a_header_has_is_left_to_pillow(photograph):
    image = Image.open(io.BytesIO(photograph)).convert("RGB").resize((24, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    for content in (
        encoded(image.convert("CMYK")),
        encoded(image, exif=exif),
        encoded(image, icc_profile=b"none"),
        encoded(image, keep_rgb=True),
        encoded(image)[:200],
        b"\xff\xd8\xff",
        b"",
    ):
        assert jpeg.plain_size(content) is None
    assert jpeg.plain_size(encoded(image, comment=b"words")) == (24, 16)
    assert decode(encoded(image, exif=exif), ImageConfig(size=8, fit="crop"), "x").shape == (
        8,
        8,
        3,
    )


def test_damage_is_what_pillow_says_it_is(photograph):
    image = Image.open(io.BytesIO(photograph)).convert("RGB").resize((64, 64))
    content = encoded(image)
    with pytest.raises(UserError, match="x: not a readable"):
        decode(content[: len(content) // 2], ImageConfig(size=8), "x")
    assert by_turbo(content[: len(content) // 2]) is None


def test_a_large_one_is_refused_from_its_header(photograph):
    content = encoded(Image.open(io.BytesIO(photograph)).resize((50, 20)))
    with pytest.raises(UserError, match=r"x: 50 x 20 pixels are more than data.image.max_pixels"):
        decode(content, ImageConfig(size=8, max_pixels=999), "x")


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_size_and_fit_do_not_depend_on_the_decoder(photograph, monkeypatch, fit):
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    for size in ((64, 64), (80, 48)):
        content = encoded(image.resize(size))
        ours = decode(content, ImageConfig(size=64, fit=fit), "x")
        with monkeypatch.context() as patch:
            patch.setattr(images, "_plain_size", lambda *_: None)
            assert np.array_equal(ours, decode(content, ImageConfig(size=64, fit=fit), "x"))


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_scaled_decoding_stays_within_the_stated_error(photograph, fit):
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    for shape in ((256, 256), (320, 200), (333, 217), (119, 401)):
        content = encoded(image.resize(shape), quality=93)
        whole, scaled = (
            decode(content, ImageConfig(size=32, fit=fit, scaled_decoding=on), "x").astype(int)
            for on in (False, True)
        )
        away = np.abs(whole - scaled)
        assert 0 < away.mean() < 2
        assert away.max() < 32
    small = encoded(image.resize((60, 60)))
    for content in (small, encoded(image.resize((60, 60)).convert("CMYK"))):
        settings = (
            ImageConfig(size=32, fit=fit),
            ImageConfig(size=32, fit=fit, scaled_decoding=True),
        )
        assert np.array_equal(*(decode(content, each, "x") for each in settings))
