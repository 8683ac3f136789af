"""Derived sets of images and their mirrored images, of which training reads one or the other."""

import json
import re

import numpy as np
import pytest
import saved_network
import torch

from data_pipeline.config import DataConfig, HintConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.derive import derive
from data_pipeline.sets.stored_set import read_manifest
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import LatentMoments, merged
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.encode import encode_set
from mezzotint.inference.encoding.embeddings import EmbeddingOptions, encode_embeddings
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian
from models.autoencoders.strided import StridedPyramid
from models.clip import ClipConfig
from trainer.recipe import load
from trainer.setup import open_inputs

STRIDED = StridedPyramid(width=16, halvings=1, blocks=1, residual_width=8, patch=2)
KL = AutoencoderConfig(image_size=16, channels=4, pyramid=STRIDED, bottleneck=Gaussian())
CLIP = ClipConfig(
    image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=40, text_length=8,
    text_width=16, text_layers=1, head_width=8, embed=6,
)  # fmt: skip
ARRAYS = ("latents", "latent_deviations")
RECIPE = (
    *("model.width=16", "model.layers=1", "model.heads=1", "model.image_size=4", "steps=1"),
    *("model.classes=null", "model.null_class=false", "task.condition={kind: none}"),
    *("data.select=[]", "data.label=null", "batch=4", "micro_batch=null"),
)


@pytest.fixture
def images(write_set, png):
    """A set whose images differ from their mirrored ones."""
    from io import BytesIO

    from PIL import Image

    def half(level):
        left = np.zeros((16, 16, 3), np.uint8)
        left[:, :8] = level
        content = BytesIO()
        Image.fromarray(left).save(content, "PNG")
        return content.getvalue()

    hint = half(255)
    changes = {n: {"png": half(20 * n + 30), "side.png": hint} for n in range(12)}
    return str(write_set(changes=changes))


@pytest.fixture
def kl(tmp_path):
    return saved_network.saved(tmp_path / "kl", KL, spread=0.05)


@pytest.fixture
def latents(images, kl, tmp_path):
    out = str(tmp_path / "latents")
    encode_set(DataConfig(url=images), kl, out, batch=5, flip=True)
    return out


def flipping(url, **settings):
    return open_dataset(DataConfig(url=url, arrays=ARRAYS, flip_arrays=True, **settings))


def chosen(dataset, seed, epoch=0):
    return [dataset.sample(index, seed=seed, epoch=epoch) for index in range(len(dataset))]


def test_both_images_are_encoded_and_the_statistics_are_of_both(images, kl, latents):
    names = (*ARRAYS, *(f"{name}_mirrored" for name in ARRAYS))
    found = open_dataset(DataConfig(url=latents, arrays=names)).batch(range(12))
    source = open_dataset(DataConfig(url=images, image=ImageConfig(size=16))).batch(range(12))
    with torch.no_grad():
        for suffix, read in (("", source.images), ("_mirrored", source.images.flip(3))):
            for name, wanted in store.load(kl).latent_arrays(read).items():
                assert torch.allclose(found.array(name + suffix), wanted, atol=1e-6)
    manifest = read_manifest(latents)
    parts = [
        LatentMoments.of(found.array(one).numpy(), found.array(two).numpy())
        for one, two in (names[:2], names[2:])
    ]
    assert manifest.latents == merged(parts).scaling("both")
    assert manifest.latents.samples == 24
    assert manifest.preprocessing.flip


def test_training_reads_one_of_the_two_by_seed_epoch_and_sample(latents):
    dataset = flipping(latents)
    plain = open_dataset(DataConfig(url=latents, arrays=ARRAYS))
    both = open_dataset(
        DataConfig(url=latents, arrays=tuple(f"{name}_mirrored" for name in ARRAYS))
    )
    mirrored = []
    for epoch in range(8):
        for index, sample in enumerate(chosen(dataset, 3, epoch)):
            one, other = plain.sample(index).arrays, both.sample(index).arrays
            flips = not np.array_equal(sample.arrays["latents"], one["latents"])
            for name in ARRAYS:  # the latents and their deviations belong together
                wanted = other[f"{name}_mirrored"] if flips else one[name]
                assert np.array_equal(sample.arrays[name], wanted)
            mirrored.append(flips)
    assert 0.3 < np.mean(mirrored) < 0.7
    again = [each.arrays["latents"] for each in chosen(dataset, 3, 5)]
    assert np.array_equal(again, [each.arrays["latents"] for each in chosen(dataset, 3, 5)])
    read = [each.arrays["latents"] for each in map(dataset.sample, range(12))]
    assert np.array_equal(read, [plain.sample(n).arrays["latents"] for n in range(12)])


def test_the_image_and_the_hint_are_mirrored_with_the_arrays(images, latents):
    settings = {"join": (images,), "image": ImageConfig(size=16), "hint": HintConfig(name="side")}
    dataset = flipping(latents, **settings)
    sides = set()
    for index, sample in enumerate(chosen(dataset, 0)):
        own = dataset.sample(index).arrays["latents"]
        flips = not np.array_equal(sample.arrays["latents"], own)
        assert bool(sample.image[0, 0, 0]) is not flips
        assert bool(sample.hint[0, 0, 0]) is not flips
        sides.add(flips)
    assert sides == {False, True}


def test_arrays_of_captions_stay(images, tmp_path):
    source = open_dataset(DataConfig(url=images))
    out = str(tmp_path / "vectors")
    blocks = [{"text_embedding": np.arange(24, dtype=np.float32).reshape(12, 1, 2)}]
    derive(source, out, blocks, fields=("text_embedding",), encoder="c" * 64)
    config = DataConfig(url=out, arrays=("text_embedding",), flip_arrays=True)
    dataset = open_dataset(config)
    for index, sample in enumerate(chosen(dataset, 0)):
        assert np.array_equal(sample.arrays["text_embedding"], [[2 * index, 2 * index + 1]])


def test_a_set_without_mirrored_arrays_is_refused(images, kl, tmp_path):
    out = str(tmp_path / "plain")
    encode_set(DataConfig(url=images), kl, out)
    wanted = r"latents_mirrored.npy: .*flip_arrays is set.*OUT --model MODEL --flip`"
    with pytest.raises(UserError, match=wanted):
        flipping(out)
    embeddings = str(tmp_path / "embeddings")
    blocks = [{"image_embedding": np.ones((12, 2), np.float32)}]
    source = open_dataset(DataConfig(url=images))
    derive(source, embeddings, blocks, fields=("image_embedding",), encoder="c" * 64)
    config = DataConfig(url=embeddings, arrays=("image_embedding",), flip_arrays=True)
    with pytest.raises(UserError, match=r"mirrored.npy: .*OUT --clip CLIP --flip`"):
        open_dataset(config)


def test_a_set_with_mirrored_images_is_another_set_than_one_without(images, kl, latents):
    data = DataConfig(url=images)
    before = read_manifest(latents)
    assert encode_set(data, kl, latents, flip=True) == before
    with pytest.raises(UserError, match=r"16 pixels, pad, bicubic, mirrored too, not as 16 pixels"):
        encode_set(data, kl, latents)


def test_a_model_records_whether_its_latents_were_mirrored(kl, latents):
    keys = [f"data.url={latents}", f"data.encoder={kl}", *RECIPE]
    for flip in (False, True):
        recipe = load("recipes/emoji_dit.yaml", [*keys, f"data.flip_arrays={str(flip).lower()}"])
        assert open_inputs(recipe).preprocessing.flip is flip


def test_images_are_not_mirrored_beside_latents_that_a_task_adds(images, kl, latents):
    keys = [f"data.url={latents}", f"data.encoder={kl}", f"data.join=[{images}]", *RECIPE]
    recipe = load("recipes/emoji_dit.yaml", [*keys, "data.image={size: 16, flip: true}"])
    with pytest.raises(UserError, match=r"but not latents, latent_deviations .*data.flip_arrays=t"):
        open_inputs(recipe)


def test_the_command_encodes_both_and_refuses_what_has_no_mirrored_form(
    images, kl, tmp_path, mezzotint, refused
):
    words = ("data", "derive", images, tmp_path / "out")
    report = json.loads(mezzotint(*words, "--model", kl, "--flip", "--json").out)
    assert report["samples"] == 12
    assert "latents_mirrored.npy" in read_manifest(str(tmp_path / "out")).fields
    for other in (("--hint", "edges", "--size", "16"), ("--text-encoder", kl)):
        said = re.sub(r"\s+", " ", refused(*words, *other, "--flip"))
        assert "--flip: belongs to --model or --clip; add that" in said


def test_embeddings_of_mirrored_images_are_kept_and_read_with_the_mirrored_image(
    images, tmp_path, mezzotint
):
    clip, out = str(tmp_path / "clip"), str(tmp_path / "out")
    pieces = Tokenizer.train(["red square number 1", "blue thing two", "green one"], 40)
    saved_network.saved(clip, CLIP, tokenizer=pieces, text_length=8)
    command = ("data", "derive", images, out, "--clip", clip, "--flip", "--batch", 5)
    assert mezzotint(*command, "--device", "cpu").code == 0
    made, name = read_manifest(out), "image_embedding"
    image = ImageConfig(size=16, fit=made.preprocessing.fit, filter=made.preprocessing.filter)
    pixels = open_dataset(DataConfig(url=images, image=image)).batch(range(12)).images
    model = ClipEmbedder.load(clip).model
    with torch.no_grad():
        own, other = model.project_image(pixels), model.project_image(pixels.flip(3))
    assert float((own - other).abs().max()) > 0.01
    dataset = open_dataset(
        DataConfig(url=images, join=(out,), image=image, arrays=(name,), flip_arrays=True)
    )
    flipped = [bool(each.image[0, 0, 0] == 0) for each in chosen(dataset, 0)]
    assert set(flipped) == {False, True}
    for index, sample in enumerate(chosen(dataset, 0)):
        wanted = (other if flipped[index] else own)[index]
        assert np.allclose(sample.arrays[name], wanted, atol=1e-6)
    scaling, both = made.embeddings.scaling, torch.cat([own, other]).double()
    assert (made.preprocessing.flip, scaling.samples) == (True, 24)
    assert np.allclose(scaling.mean, both.mean(0), atol=1e-6)
    data, kept = DataConfig(url=images), EmbeddingOptions("l2_sqrt_d", flip=True)
    assert encode_embeddings(data, clip, out, kept).embeddings.scaling.samples == 24
    assert encode_embeddings(data, clip, out, EmbeddingOptions(flip=True)) == made
    with pytest.raises(UserError, match=r"16 pixels, .* mirrored too, not as 16 pixels"):
        encode_embeddings(data, clip, out)
