"""`mezzotint sample --image`: image-to-image and inpainting of latents, and negative prompts."""

import json
import shutil

import numpy as np
import pytest
import saved_network
from PIL import Image

from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.latent_scaling import LatentScaling
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian
from models.autoencoders.strided import StridedPyramid
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage

PYRAMID = StridedPyramid(width=8, halvings=1, blocks=1, residual_width=8, patch=2)
KL = AutoencoderConfig(image_size=16, channels=4, pyramid=PYRAMID, bottleneck=Gaussian())
SCALING = LatentScaling(mean=0.1, std=1.5, samples=4)
UNET = UNetConfig(
    image_size=4, image_channels=4, channels=8, multipliers=(1,), depth=1, groups=4, attention=(),
    head_width=4, text={"vocab": 40, "length": 6, "width": 8, "layers": 1, "heads": 1},
    transformer={},
)  # fmt: skip
FEW = ("--number", "1", "--steps", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A first stage, a denoiser of its latents that reads captions, a photo and masks."""
    root = tmp_path_factory.mktemp("edits")
    stage = saved_network.saved(root / "kl", KL)
    saved_network.saved(root / "other", KL.model_copy(update={"pyramid": PYRAMID}), spread=0.2)
    found = FirstStage(model=stage, digest=store.describe(stage).digest, scaling=SCALING)
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    reads = {"tokenizer": Tokenizer.train(words, 40), "text_length": 6}
    saved_network.saved(root / "latent", UNET, first_stage=found, **reads)
    levels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(levels).save(root / "photo.png")
    mask = np.zeros((16, 16), np.uint8)
    Image.fromarray(mask).save(root / "black.png")
    mask[:, 8:] = 255
    Image.fromarray(mask).save(root / "half.png")
    return root


@pytest.fixture
def sample(home, mezzotint, tmp_path):
    """Samples a caption with options; returns the report and the one image."""

    def run(*words, model="latent"):
        out = tmp_path / "out.png"
        done = mezzotint("sample", home / model, "man pilot", "--out", out, *FEW, *words, "--json")
        assert done.code == 0, done.err
        return json.loads(done.out), np.asarray(Image.open(out).convert("RGB"))

    return run


def test_an_image_is_changed_by_a_strength(home, sample):
    image = ("--image", home / "photo.png", "--strength", "0.5")
    report, changed = sample(*image)
    assert report["system"]["kind"] == "latent"
    assert (report["image"], report["strength"]) == (str(home / "photo.png"), 0.5)
    assert report["inpainting"] is None
    assert report["cells"][0]["nfe"]["network"] == 2  # of 4 steps
    assert not np.array_equal(changed, sample()[1])
    assert not np.array_equal(changed, sample(*image[:2], "--strength", "0.25")[1])


def test_a_mask_says_what_is_repainted_and_the_report_how(home, sample):
    words = ("--image", home / "photo.png", "--mask", home / "half.png")
    report, found = sample(*words)
    assert report["inpainting"] == "known-region replacement"
    assert report["strength"] == 1.0
    photo = np.asarray(Image.open(home / "photo.png"))
    shown = {tuple(pixel) for pixel in found.reshape(-1, 3)}
    kept, repainted = ({tuple(each) for each in photo[:, half].reshape(-1, 3)}
                       for half in (slice(8), slice(8, 16)))  # fmt: skip
    assert kept <= shown
    assert len(repainted & shown) < 4
    assert sample(*words, "--strength", "0.5")[0]["cells"][0]["nfe"]["network"] == 2


def test_analytic_dpm_takes_the_rest_of_its_grid(home, sample):
    data = ("--solver", "analytic_dpm", "--data", "data/emoji")
    report, _ = sample("--image", home / "photo.png", "--strength", "0.5", *data)
    assert report["cells"][0]["nfe"]["network"] == 2


def test_the_first_stage_may_lie_elsewhere(home, sample):
    shutil.copytree(home / "kl", home / "moved", dirs_exist_ok=True)
    _, here = sample()
    report, there = sample("--first-stage", home / "moved")
    assert report["system"]["first_stage"] == str(home / "moved")
    assert np.array_equal(here, there)


def test_a_negative_prompt_acts_on_latents_through_guidance(sample):
    _, plain = sample("--guidance", "3")
    report, away = sample("--guidance", "3", "--negative", "woman cook")
    assert report["system"]["negative"] == "woman cook"
    assert not np.array_equal(plain, away)
    assert np.array_equal(plain, sample("--guidance", "3", "--negative", "")[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--strength", "0.5"), "--strength: belongs to --image; add one, or leave it out"),
        (("--mask", "half.png"), "--mask: belongs to --image"),
        (("--image", "photo.png"), "--image: say how much of it changes by --strength, or where"),
        (("--image", "none.png", "--strength", "0.5"), "none.png: no such image"),
        (("--image", "photo.png", "--mask", "none.png"), "none.png: no such image"),
        (("--image", "photo.png", "--mask", "black.png"), "black.png: nothing in it is white"),
        (("--image", "photo.png", "--strength", "0.1"), "strength 0.1: takes none of 4 steps"),
        (("--first-stage", "other"), "another first stage than"),
        (("--first-stage", "none"), "none"),
        (("--negative", "cook"), "a negative caption acts through guidance"),
    ],
)
def test_edits_that_do_not_fit_are_refused(home, refused, tmp_path, words, message):
    named = [home / word if word.endswith(".png") or word in ("other", "none") else word
             for word in words]  # fmt: skip
    found = refused(
        "sample", home / "latent", "man pilot", "--out", tmp_path / "out.png", *FEW, *named
    )
    assert message in found
