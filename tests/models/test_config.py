"""The union of model kinds."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from models.autoencoders.discriminator import PatchDiscriminatorConfig
from models.autoencoders.dvae import DVAEConfig
from models.autoregressive.embedding_prior import EmbeddingPriorConfig
from models.autoregressive.prior import PriorConfig
from models.clip import ClipConfig
from models.config import ModelConfig, TextShape, text_shape
from models.diffusion.dit import DiTConfig
from models.diffusion.prior.network import DiffusionPriorConfig
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig

ADAPTER = TypeAdapter(ModelConfig)
CONFIGS = [
    DVAEConfig(image_size=32, patch=2, groups=2, width=128, vocab=512),
    PatchDiscriminatorConfig(),
    PriorConfig(text_vocab=50, text_length=8, image_vocab=64, grid=(4, 4)),
    ClipConfig(image_size=32, patch=8, text_vocab=50, text_length=8),
    TextDiffusionConfig(image_size=32, text_vocab=50, text_length=8),
    SuperResolutionConfig(low_size=32, image_size=64),
    DiTConfig(image_size=8, width=32, layers=1, heads=2, classes=4),
    DiffusionPriorConfig(dim=8, features={"width": 8}, length=4, width=16, layers=1, heads=2),
    EmbeddingPriorConfig(
        dim=8, components=4, features={"width": 8}, length=4, width=16, layers=1, heads=2
    ),
    UNetConfig(image_size=8, channels=32, multipliers=(1, 2), attention=(8,), head_width=32),
]


def kind(config):
    return config.kind


@pytest.mark.parametrize("config", CONFIGS, ids=kind)
def test_a_config_survives_json(config):
    assert ADAPTER.validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("config", CONFIGS, ids=kind)
def test_an_unknown_key_is_refused_by_name(config):
    with pytest.raises(ValidationError, match="widht"):
        ADAPTER.validate_python({**config.model_dump(), "widht": 3})


@pytest.mark.parametrize("config", CONFIGS, ids=kind)
def test_a_config_builds_its_network_also_without_memory(config):
    with torch.device("meta"):
        model = config.build()
    assert model.config == config
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) > 0


@pytest.mark.parametrize("config", CONFIGS, ids=kind)
def test_parameters_follow_the_callers_seed(config):
    def built(seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return config.build().state_dict()

    first, again, other = built(0), built(0), built(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("config", CONFIGS, ids=kind)
def test_every_parameter_has_a_dimension(config):
    # DeepSpeed cannot broadcast one without
    with torch.device("meta"):
        model = config.build()
    assert [name for name, value in model.named_parameters() if value.ndim == 0] == []


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValidationError, match="'dvae', 'patch_discriminator', 'prior'"):
        ADAPTER.validate_python({"kind": "gan"})


def test_only_models_that_read_captions_have_a_text_shape():
    shapes = {config.kind: text_shape(config) for config in CONFIGS}
    reading = {kind for kind, shape in shapes.items() if shape is not None}
    assert reading == {"prior", "clip", "text_diffusion"}
    assert shapes["prior"] == TextShape(vocab=50, length=8)
    text = {"vocab": 50, "length": 8, "width": 64, "layers": 1, "heads": 1}
    assert text_shape(CONFIGS[-1].model_validate({**CONFIGS[-1].model_dump(), "text": text})) == (
        TextShape(vocab=50, length=8, keys="model.text.")
    )


def test_the_small_autoencoder_is_cheap():
    from torch.utils.flop_counter import FlopCounterMode

    model = DVAEConfig(image_size=32, patch=2, groups=2, width=120, vocab=512).build()
    with FlopCounterMode(display=False) as counter:
        model.decoder(model.encoder(torch.zeros(1, 3, 32, 32)).softmax(1))
    assert counter.get_total_flops() <= 0.3e9
    assert sum(parameter.numel() for parameter in model.parameters()) < 2.5e6
