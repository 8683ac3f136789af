"""`mezzotint sample` with a model that is conditioned on features of a frozen encoder."""

import json

import pytest
import torch
from PIL import Image

from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.inference.config import DiffusionSystem
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.load import load_generator
from models import frozen_text, store
from models.clip import ClipConfig
from models.diffusion.unet.network import UNetConfig
from models.text_source import ClipText

CLIP = ClipConfig(
    image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=40, text_length=6,
    text_width=16, text_layers=1, head_width=8, embed=8,
)  # fmt: skip
UNET = UNetConfig(
    image_size=8, channels=8, multipliers=(1,), depth=1, groups=4, attention=(8,), head_width=4,
    features={"width": 16},
)  # fmt: skip
CAPTIONS = ("woman pilot", "man cook")


def save_clip(where, seed=0):
    torch.manual_seed(seed)
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    weights, tokenizer = CLIP.build().state_dict(), Tokenizer.train(words, 40)
    store.save(where, CLIP, weights, card="tiny", tokenizer=tokenizer, text_length=6)


@pytest.fixture
def model(tmp_path):
    """An untrained network that is not blank, and the encoder beside it."""
    save_clip(str(tmp_path / "clip"))
    source = frozen_text.describe(ClipText(model=str(tmp_path / "clip"))).source
    torch.manual_seed(0)
    network = UNET.build()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    for name, encoder in (("model", source), ("mute", None)):
        where = str(tmp_path / name)
        store.save(where, UNET, network.state_dict(), card="tiny", text_encoder=encoder)
    return tmp_path / "model"


def test_captions_pass_the_encoder_that_the_model_names(mezzotint, model, tmp_path):
    sheet = tmp_path / "sheet.png"
    words = ["--number", 1, "--steps", 2, "--guidance", 2, "--out", sheet, "--json"]
    outcome = mezzotint("sample", model, *CAPTIONS, *words)
    assert outcome.code == 0, outcome.err
    with Image.open(sheet) as image:
        assert image.width > 8
    (cell,) = json.loads(outcome.out)["cells"]
    assert cell["nfe"]["network"] == 4


def test_an_image_depends_on_its_caption_and_guidance_on_the_empty_one(model):
    def generated(**settings):
        tree = {"model": str(model), "sampling": {"steps": 2, "guidance": 3.0}} | settings
        generator = load_generator(DiffusionSystem.model_validate(tree), precision="fp32")
        request = GenerationRequest(tuple(map(Prompt, CAPTIONS)), seed=1)
        return generator.generate(request).images, generator.protocol()["captions"]

    images, protocol = generated()
    assert not torch.equal(images[0], images[1])
    assert protocol == store.describe(str(model)).text_encoder.model_dump()
    same, _ = generated(negative="")
    assert torch.equal(same, images)
    other, _ = generated(negative="man pilot")
    assert not torch.equal(other, images)


def test_another_encoder_in_its_place_or_none_is_refused(refused, model, tmp_path):
    save_clip(str(tmp_path / "clip"), seed=1)
    message = refused("sample", model, CAPTIONS[0])
    assert "config.json: text_encoder: " in message
    assert "holds another text encoder" in message
    message = refused("sample", tmp_path / "mute", CAPTIONS[0])
    assert "names no text_encoder that makes them" in message
    (tmp_path / "clip" / "config.json").unlink()
    assert "is not a model directory" in refused("sample", model, CAPTIONS[0])
