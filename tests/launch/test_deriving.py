"""Derived sets of every autoencoder with codes, and priors that train on them."""

import numpy as np
import pytest
import torch

from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig, ImageConfig, Selection
from data_pipeline.dataset import open_dataset
from launch.deriving import derive_tokens, encoder_size
from launch.errors import LaunchError
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoencoders.quantizer import EmaVectorQuantizerConfig
from models.autoencoders.strided import StridedPyramid
from models.systems.hierarchy import level_shapes
from trainer.errors import TrainError
from trainer.recipe import load
from trainer.task import Step

STRIDED = StridedPyramid(width=16, halvings=1, blocks=1, residual_width=8, patch=2)
EMA = EmaVectorQuantizerConfig(codes=16)
HIERARCHY = VQVAE2Config(image_size=16, channels=8, pyramid=STRIDED, bottleneck=EMA)

RECIPE = """
name: bottom
steps: 1
batch: 4
model: {{kind: prior, text_vocab: 18, text_length: 5, image_vocab: 16, grid: [4, 4], width: 16,
  layers: 1, heads: 1, head_width: 16}}
task: {{kind: level_prior, codes: bottom, given: [{{codes: top, vocab: 16, places: 4}}]}}
data: {{url: {url}, arrays: [top, bottom]}}
optimizer: {{lr: {{peak: 1.0e-3}}}}
"""


def saved(directory, config):
    torch.manual_seed(0)
    store.save(str(directory), config, config.build().state_dict(), card="tiny")
    return str(directory)


def small():
    """The pictures of one emoji."""
    everything = Selection(split="composition", part="test")
    base = open_dataset(DataConfig(url="data/emoji", select=(everything,))).attributes(0)["base"]
    chosen = Selection(split="composition", part="test", where={"base": (base,)})
    return DataConfig(url="data/emoji", select=(chosen,), image=ImageConfig(size=16))


def test_a_hierarchys_codes_are_derived_per_level_and_a_prior_trains_on_them(tmp_path):
    model = saved(tmp_path / "model", HIERARCHY)
    data = small()
    manifest = derive_tokens(data, model, str(tmp_path / "codes"), 8)
    assert manifest.encoder == store.describe(model).digest
    derived = open_dataset(DataConfig(url=str(tmp_path / "codes"), arrays=("top", "bottom")))
    batch = derived.batch(range(len(derived)))
    wanted = store.load(model).codes(open_dataset(data).batch(range(len(derived))).images)
    for name, codes in zip(("top", "bottom"), wanted, strict=True):
        assert np.array_equal(batch.array(name).numpy(), codes.numpy())

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(url=tmp_path / "codes"))
    loaded = load(recipe)
    shape = level_shapes(HIERARCHY)["bottom"]
    assert (shape.text_vocab, shape.text_length, shape.grid) == (18, 5, loaded.model.grid)
    task = loaded.task.build(loaded.model.build())
    (loss,) = task.losses(task.parts(), batch, Step(0, torch.Generator()))
    assert loss.value.item() == pytest.approx(np.log(16), rel=0.05)
    loss.value.backward()
    drawn = task.preview(task.parts(), batch, torch.Generator())["codes"]
    assert drawn.shape == (len(derived), 3, 4, 4)


class Recorded:
    """Stands for an engine; keeps what the prior was given."""

    def __init__(self, model):
        self.module = model
        self.read = []

    def __call__(self, *given):
        self.read.append(given)
        return self.module(*given)


def test_code_noise_spoils_what_is_read_and_not_what_is_predicted(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(url="data/emoji"))
    codes = {"top": torch.zeros(64, 2, 2), "bottom": torch.zeros(64, 4, 4)}
    batch = Batch(keys=("",) * 64, captions=("",) * 64, arrays=codes)

    def loss(noise):
        loaded = load(recipe, [f"task.code_noise={noise}"])
        torch.manual_seed(0)
        task = loaded.task.build(loaded.model.build())
        engine = Recorded(task.parts()["model"])
        (found,) = task.losses({"model": engine}, batch, Step(0, torch.Generator().manual_seed(1)))
        ((prefix, read),) = engine.read
        return prefix, read, found.value

    clean_prefix, clean, value = loss(0.0)
    prefix, read, noisy_value = loss(0.5)
    assert not clean.any()
    assert (clean_prefix[:, 1:] == 2).all()
    assert torch.equal(prefix[:, :1], clean_prefix[:, :1])
    assert ((prefix[:, 1:] >= 2) & (prefix[:, 1:] < 18)).all()
    for spoiled in ((prefix[:, 1:] != 2), (read != 0)):
        assert spoiled.float().mean().item() == pytest.approx(0.5 * 15 / 16, abs=0.12)
    assert noisy_value.item() != value.item()
    assert noisy_value.item() == pytest.approx(np.log(16), rel=0.05)


def test_a_level_prior_without_room_for_the_coarser_codes_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(url="data/emoji"))
    loaded = load(recipe, ["model.text_length=4"])
    with pytest.raises(TrainError, match=r"task\.given: 4 codes of 16 kinds do not fit"):
        loaded.task.build(loaded.model.build())


def test_a_vq_vae_derives_codes_and_a_continuous_latent_is_refused(tmp_path):
    vq = AutoencoderConfig(image_size=16, channels=4, pyramid=STRIDED, bottleneck=EMA)
    model = saved(tmp_path / "vq", vq)
    assert encoder_size(model) == 16
    manifest = derive_tokens(small(), model, str(tmp_path / "codes"), 8)
    assert "codes.npy" in manifest.fields
    kl = vq.model_copy(update={"bottleneck": Gaussian()})
    with pytest.raises(LaunchError, match="its latent is continuous"):
        encoder_size(saved(tmp_path / "kl", kl))
