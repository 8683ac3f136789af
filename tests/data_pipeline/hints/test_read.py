import io

import numpy as np
import pytest
from PIL import Image

from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig, HintConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.hints.read import read_array_hint, read_image_hint
from data_pipeline.packing.shard_writer import RawSample, write_shards
from mezzotint.common.errors import UserError
from mezzotint.common.hint import Detector
from mezzotint.common.preprocessing import Preprocessing

DETECTOR = Detector(kind="edges", library="opencv", version="4", settings={"low": 100})

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))


def file_of(image, form="PNG"):
    content = io.BytesIO()
    image.save(content, form)
    return content.getvalue()


def grey(*levels, size=(2, 2)):
    image = Image.new("L", size)
    image.putdata(levels)
    return image


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def made(tmp_path, members, **options):
    image = file_of(Image.new("RGB", (2, 2), "red"))
    samples = [RawSample(f"k{i}", {"png": image, "txt": b"a", **members}) for i in range(2)]
    url = str(tmp_path / "set")
    write_shards(
        samples, url, name="s", licence="l", provenance={}, shard_size=2, fields={}, **options
    )
    return url


def opened(url, channels=1, size=2, **options):
    hint = HintConfig(name="edges", channels=channels)
    image = ImageConfig(size=size, **options)
    return open_dataset(DataConfig(url=url, image=image, hint=hint))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_grey_levels_are_values_between_0_and_1(form):
    content = file_of(grey(0, 51, 102, 255), "PNG")
    hint = read_image_hint(content, "h.png", channels=1, size=2)
    np.testing.assert_allclose(hint, np.array([[[0, 0.2], [0.4, 1]]]), atol=1e-6)
    assert hint.dtype == np.float32


def test_grey_serves_as_three_equal_channels_and_grey_colours_as_one():
    image = grey(0, 51, 102, 255)
    three = read_image_hint(file_of(image), "h.png", channels=3, size=2)
    one = read_image_hint(file_of(image.convert("RGB")), "h.png", channels=1, size=2)
    assert three.shape == (3, 2, 2)
    np.testing.assert_array_equal(three, np.repeat(one, 3, axis=0))


def test_16_bit_levels_keep_their_precision():
    image = Image.fromarray(np.array([[0, 1], [32768, 65535]], dtype=np.uint16))
    hint = read_image_hint(file_of(image), "h.png", channels=1, size=2)
    np.testing.assert_allclose(hint[0].ravel() * 65535, [0, 1, 32768, 65535], rtol=1e-6)


@pytest.mark.parametrize(
    ("image", "channels", "message"),
    [
        (Image.new("RGB", (2, 2), "red"), 1, "h.png: the hint has 3 channels, but 1 are needed"),
        (Image.new("L", (2, 2)), 4, "the hint has 1 channels, but 4 are needed"),
        (Image.new("L", (4, 3)), 1, "the hint is 4 x 3 pixels, but the images are 2 x 2; make"),
        (Image.new("RGBA", (2, 2)), 3, "transparent pixels; save it without transparency"),
    ],
)
def test_hints_of_another_form_are_refused(image, channels, message):
    with pytest.raises(UserError, match=message):
        read_image_hint(file_of(image), "h.png", channels=channels, size=2)


@pytest.mark.parametrize("content", [b"", b"no image", file_of(NOISE)[:200]])
def test_a_file_that_is_no_image_is_refused(content):
    with pytest.raises(UserError, match=r"h.png: not a readable PNG, JPEG or WebP image; give a"):
        read_image_hint(content, "h.png", channels=1, size=2)


def test_a_users_image_is_padded_with_0_and_resized_as_the_images_are():
    image = Image.new("L", (4, 2), 255)
    pad = Preprocessing(size=4, fit="pad", filter="box")
    hint = read_image_hint(file_of(image), "h.png", channels=1, size=4, prepare=pad)
    np.testing.assert_array_equal(hint[0].mean(axis=1), [0, 1, 1, 0])
    crop = Preprocessing(size=1, fit="crop", filter="box")
    hint = read_image_hint(file_of(image), "h.png", channels=1, size=1, prepare=crop)
    assert hint.tolist() == [[[1.0]]]


def test_arrays_are_hints_of_any_number_of_channels():
    array = np.linspace(0, 1, 20).reshape(5, 2, 2)
    hint = read_array_hint(npy(array), "h.npy", channels=5, size=2)
    np.testing.assert_allclose(hint, array, rtol=1e-6)
    levels = read_array_hint(npy(np.full((1, 2, 2), 51, np.uint8)), "h.npy", channels=1, size=2)
    np.testing.assert_allclose(levels, 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.zeros((2, 2))), r"has shape \(2, 2\); a hint is \(channels, height, width\)"),
        (npy(np.zeros((3, 2, 2))), "the hint has 3 channels, but 1 are needed"),
        (npy(np.zeros((1, 3, 4))), "the hint is 4 x 3 pixels, but the images are 2 x 2"),
        (npy(np.full((1, 2, 2), 1.5)), r"values outside of \[0, 1\]"),
        (npy(np.full((1, 2, 2), np.nan)), r"values outside of \[0, 1\]"),
        (npy(np.zeros((1, 2, 2), np.int64)), "int64 values; store float"),
        (b"x", "h.npy: not a plain array"),
    ],
)
def test_arrays_that_are_no_hint_are_refused(content, message):
    with pytest.raises(UserError, match=message):
        read_array_hint(content, "h.npy", channels=1, size=2)


def test_a_batch_has_the_hints_of_its_samples(tmp_path):
    url = made(tmp_path, {"edges.png": file_of(grey(0, 51, 102, 255))})
    batch = opened(url).batch([0, 1])
    assert batch.hints.shape == (2, 1, 2, 2)
    assert batch.hints.max() == 1
    arrays = made(tmp_path / "b", {"edges.npy": npy(np.ones((4, 2, 2), np.float32))})
    assert opened(arrays, channels=4).batch([0]).hints.shape == (1, 4, 2, 2)


def test_a_batch_without_hints_says_what_to_set():
    with pytest.raises(UserError, match=r"data.hint is not set, but this task needs hints"):
        _ = Batch(("a",), ("b",)).hints


def test_a_mirrored_image_has_a_mirrored_hint(tmp_path):
    content = file_of(grey(0, 255, 0, 255))
    url = made(tmp_path, {"edges.png": content})
    dataset = opened(url, flip=True)
    mirrored = {bool(dataset.sample(0, seed=s).hint[0, 0, 0]) for s in range(9)}
    assert mirrored == {False, True}


def test_a_sample_without_its_hint_is_named(tmp_path):
    with pytest.raises(UserError, match=r"k0.edges.png: no such image and no array edges.npy"):
        opened(made(tmp_path, {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4}, "made from images of 2 pixels, but 4 are needed; derive it again with"),
        ({"fit": "crop"}, "made from images of fit pad, but those of .* are of fit crop"),
        ({"filter": "box"}, "images of filter bicubic, but those .* --image-filter box"),
    ],
)
def test_hints_of_images_prepared_otherwise_are_refused(tmp_path, options, message):
    url = made(
        tmp_path,
        {"edges.png": file_of(grey(0, 0, 0, 0))},
        detector=DETECTOR,
        preprocessing=Preprocessing(size=2),
    )
    with pytest.raises(UserError, match=message):
        opened(url, **options)


def test_a_hint_whose_size_nothing_states_is_refused(tmp_path):
    url = made(tmp_path, {"edges.png": file_of(grey(0, 0, 0, 0))})
    data = DataConfig(url=url, hint=HintConfig(name="edges"))
    with pytest.raises(UserError, match=r"data.hint.size: nothing states the size of hint 'edges'"):
        open_dataset(data)


def test_a_detector_changes_the_fingerprint_of_a_set(tmp_path):
    plain = open_dataset(DataConfig(url=made(tmp_path, {}))).manifest
    detected = open_dataset(DataConfig(url=made(tmp_path / "b", {}, detector=DETECTOR))).manifest
    assert detected.detector == DETECTOR
    assert detected.fingerprint != plain.fingerprint
