"""Derived sets of every autoencoder: priors train on their codes, diffusion on their latents."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mezzotint.inference.encode
from data_pipeline.batch import Batch
from data_pipeline.config import DataConfig, ImageConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.sets.journal import ShardJournal
from data_pipeline.sets.stored_set import read_manifest
from data_pipeline.sets.write import write_manifest
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import LatentScaling
from mezzotint.common.preprocessing import Preprocessing
from mezzotint.inference.encode import encode_set, encoder_size
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian, moments
from models.autoencoders.discriminator import PatchDiscriminatorConfig
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoencoders.levels import level_shapes
from models.autoencoders.quantizer import EmaVectorQuantizerConfig
from models.autoencoders.strided import StridedPyramid
from models.nn.initialization import materialize
from trainer.recipe import load
from trainer.setup import open_inputs
from trainer.task import Step
from trainer.tasks.targets import Array

STRIDED = StridedPyramid(width=16, halvings=1, blocks=1, residual_width=8, patch=2)
EMA = EmaVectorQuantizerConfig(codes=16)
HIERARCHY = VQVAE2Config(image_size=16, channels=8, pyramid=STRIDED, bottleneck=EMA)

RECIPE = """
name: bottom
steps: 1
batch: 4
model: {{kind: prior, text_vocab: 18, text_length: 5, image_vocab: 16, grid: [4, 4], width: 16,
  layers: 1, heads: 1, head_width: 16}}
task: {{kind: level_prior, codes: bottom, given: [{{codes: top, vocab: 16, length: 4}}]}}
data: {{url: {url}, arrays: [top, bottom]}}
optimizer: {{lr: {{peak: 1.0e-3}}}}
"""


def saved(directory, config, seed=0):
    torch.manual_seed(seed)
    size = getattr(config, "image_size", None)
    preprocessing = None if size is None else Preprocessing(size=size)
    weights = config.build().state_dict()
    store.save(str(directory), config, weights, card="tiny", preprocessing=preprocessing)
    return str(directory)


def small():
    """The images of one emoji."""
    everything = Selection(split="composition", part="test")
    base = (
        open_dataset(DataConfig(url="data/emoji", select=(everything,))).entry(0).attributes["base"]
    )
    chosen = Selection(split="composition", part="test", where={"base": (base,)})
    return DataConfig(url="data/emoji", select=(chosen,), image=ImageConfig(size=16))


def test_a_hierarchys_codes_are_derived_per_level_and_a_prior_trains_on_them(tmp_path):
    model = saved(tmp_path / "model", HIERARCHY)
    data = small()
    manifest = encode_set(data, model, str(tmp_path / "codes"), batch=8)
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
    sampled = task.preview(task.parts(), batch, torch.Generator())["codes"]
    assert sampled.shape == (len(derived), 3, 4, 4)


class Recorded:
    """Stands for an engine; keeps what the prior was given."""

    def __init__(self, model):
        self.module = model
        self.read = []

    def __call__(self, *given):
        self.read.append(given)
        return self.module(*given)


def test_code_noise_changes_what_is_read_and_not_what_is_predicted(tmp_path):
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
    for changed in ((prefix[:, 1:] != 2), (read != 0)):
        assert changed.float().mean().item() == pytest.approx(0.5 * 15 / 16, abs=0.12)
    assert noisy_value.item() != value.item()
    assert noisy_value.item() == pytest.approx(np.log(16), rel=0.05)


def test_a_level_prior_without_positions_for_the_coarser_codes_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(url="data/emoji"))
    loaded = load(recipe, ["model.text_length=4"])
    with pytest.raises(UserError, match=r"task\.given: 4 codes of 16 kinds do not fit"):
        loaded.task.build(loaded.model.build())


def test_a_vq_vae_derives_codes_or_requested_latents(tmp_path):
    vq = AutoencoderConfig(image_size=16, channels=4, pyramid=STRIDED, bottleneck=EMA)
    model, data = saved(tmp_path / "vq", vq), small()
    assert encoder_size(model) == 16
    manifest = encode_set(data, model, str(tmp_path / "codes"), batch=8)
    assert "codes.npy" in manifest.fields
    out = str(tmp_path / "latents")
    manifest = encode_set(data, model, out, batch=8, latents=True)
    assert {"latents.npy", "txt", "json"} <= manifest.fields.keys()
    found = open_dataset(DataConfig(url=out, arrays=("latents",))).batch(range(2))
    wanted = store.load(model).encode(open_dataset(data).batch(range(2)).images)
    assert torch.allclose(found.array("latents"), wanted, atol=1e-6)


KL = AutoencoderConfig(image_size=16, channels=4, pyramid=STRIDED, bottleneck=Gaussian())
SMALLER = (
    *("model.width=16", "model.layers=1", "model.heads=1", "model.image_size=4", "model.classes=5"),
    *(
        "data.select=[]",
        "batch=4",
        "micro_batch=null",
        "steps=1",
        "data.workers=0",
        "engine.zero=0",
    ),
    "data.label={attribute: tone, values: [light, medium-light, medium, medium-dark, dark]}",
)


@pytest.mark.parametrize("name", ["emoji_dit", "imagenet_dit_xl2"])
@torch.no_grad()
def test_a_dit_trains_on_derived_latents_and_they_decode_to_images(tmp_path, name):
    model, data, out = saved(tmp_path / "kl", KL), small(), str(tmp_path / "latents")
    manifest = encode_set(data, model, out, batch=8)
    first_stage, dataset = store.load(model), open_dataset(data)
    images = dataset.batch(range(len(dataset))).images
    overrides = [f"data.url={out}", f"data.encoder={model}", *SMALLER]
    loaded = load(f"recipes/{name}.yaml", overrides)
    inputs = open_inputs(loaded)
    batch = inputs.dataset.batch(range(len(inputs.dataset)))
    mean, log_variance = moments(first_stage.hidden(images))
    assert torch.allclose(batch.array("latents"), mean, atol=1e-6)
    assert torch.allclose(batch.array("latent_deviations"), (log_variance / 2).exp(), atol=1e-6)
    assert batch.labels.tolist() == [TONES.index(each) for each in tones(dataset)]
    decoded = first_stage.decode(batch.array("latents"))
    assert torch.allclose(decoded, first_stage.reconstruct(images), atol=1e-5)

    found = manifest.latents
    assert found.samples == len(dataset)
    sampled = mean + (log_variance / 2).exp() * torch.randn(mean.shape)
    assert found.std == pytest.approx(float(sampled.std()), rel=0.1)
    assert found.scale * found.std == pytest.approx(1.0)
    with torch.enable_grad():
        parts = inputs.task.parts()
        for _ in materialize(parts["model"], 0, device=torch.device("cpu")):
            pass
        (loss,) = inputs.task.losses(parts, batch, Step(0, torch.Generator().manual_seed(0)))
        loss.value.backward()
    assert loss.value.item() > 0
    assert all(
        weight.grad is not None for weight in parts["model"].parameters() if weight.requires_grad
    )
    other = saved(tmp_path / "other", KL.model_copy(update={"channels": 3}))
    with pytest.raises(UserError, match="encoder"):
        open_inputs(load(f"recipes/{name}.yaml", [*overrides, f"data.encoder={other}"]))


TONES = ["light", "medium-light", "medium", "medium-dark", "dark"]


def tones(dataset):
    return [dataset.entry(index).attributes["tone"] for index in range(len(dataset))]


def test_a_latent_is_sampled_again_each_time_it_comes():
    arrays = {"latents": torch.ones(500, 4, 2, 2), "spread": torch.full((500, 4, 2, 2), 0.5)}
    batch = Batch(keys=("",) * 500, captions=("",) * 500, arrays=arrays)
    fixed = Array(name="latents", mean=0.5, scale=2.0)
    assert torch.equal(fixed.clean(batch, torch.Generator()), torch.ones(500, 4, 2, 2))
    drawing = fixed.model_copy(update={"std": "spread"})
    rng = torch.Generator().manual_seed(0)
    one, two = drawing.clean(batch, rng), drawing.clean(batch, rng)
    assert not torch.equal(one, two)
    assert float(one.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(one.std()) == pytest.approx(2 * 0.5, rel=0.05)


def test_the_command_reports_how_to_scale_latents(mezzotint, refused, tmp_path, write_set):
    model = saved(tmp_path / "kl", KL)
    words = ["data", "derive", write_set(), tmp_path / "out", "--model", model]
    report = json.loads(mezzotint(*words, "--json").out)
    assert report["samples"] == 12
    plain = mezzotint(*words)  # made already
    assert (
        f"latents of 12 samples: mean {report['mean']:.6g}, standard deviation {report['std']:.6g}"
        in plain.out
    )
    codes = saved(tmp_path / "codes", HIERARCHY)
    wrong = refused(
        "data", "derive", tmp_path / "set", tmp_path / "no", "--model", codes, "--latents"
    )
    assert "a vqvae2 has codes and no latents of its own; leave out --latents" in wrong
    clip = saved(tmp_path / "d", PatchDiscriminatorConfig(width=8, layers=1))
    assert "images are encoded by an autoencoder" in refused(
        "data", "derive", tmp_path / "set", tmp_path / "no", "--model", clip
    )


@pytest.fixture
def kl(tmp_path, write_set):
    """A derived set of 12 samples and its first stage."""
    model, out = saved(tmp_path / "kl", KL), str(tmp_path / "latents")
    return model, encode_set(DataConfig(url=str(write_set())), model, out, batch=5), out


def of_set(kl, *overrides):
    model, _, out = kl
    keys = [f"data.url={out}", f"data.encoder={model}", *SMALLER[:-1], "data.label=null"]
    keys += ["model.classes=null", "model.null_class=false", "task.condition={kind: none}"]
    return load("recipes/emoji_dit.yaml", [*keys, *overrides])


def test_latents_are_read_normalised_by_what_the_set_measured_and_the_model_records_it(kl):
    model, manifest, out = kl
    inputs = open_inputs(of_set(kl))
    assert inputs.first_stage.model == model
    assert inputs.first_stage.digest == manifest.encoder
    assert inputs.first_stage.scaling == manifest.latents
    batch = inputs.dataset.batch(range(12))
    assert set(batch.arrays) == {"latents", "latent_deviations"}
    target = inputs.task._config.target
    rng = torch.Generator().manual_seed(0)
    sampled = torch.stack([target.clean(batch, rng) for _ in range(20)])
    assert float(sampled.mean()) == pytest.approx(0, abs=0.02)
    assert float(sampled.std()) == pytest.approx(1, abs=0.02)
    given = open_inputs(of_set(kl, "task.target.scaling={mean: 1, std: 2, samples: 5}"))
    assert given.first_stage.scaling == LatentScaling(mean=1, std=2, samples=5)
    at = str(Path(out).parent / "trained")
    config = of_set(kl).model
    weights = config.build().state_dict()
    store.save(at, config, weights, card="", first_stage=inputs.first_stage)
    assert store.describe(at).first_stage == inputs.first_stage


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.image_size=8",), "model.image_size is 8, and latents of .* have 4; set"),
        (("model.image_channels=3",), "model.image_channels is 3, and latents of .* have 4"),
        (("data.encoder=null",), "data.encoder: name the model directory of the first stage"),
        ((f"data.encoder={'a' * 64}",), "its encoder is .*, but this run needs aaaaaaaaaaaa"),
    ],
)
def test_latents_that_do_not_fit_are_refused(kl, overrides, message):
    with pytest.raises(UserError, match=message):
        open_inputs(of_set(kl, *overrides))


def test_a_set_that_was_not_measured_is_refused_and_deriving_it_again_measures_it(kl, mezzotint):
    model, manifest, out = kl
    write_manifest(out, manifest.model_copy(update={"latents": None}))
    unmeasured = read_manifest(out)
    assert unmeasured.fingerprint == manifest.fingerprint
    with pytest.raises(UserError, match=r"were not measured.*run the same `mezzotint data derive`"):
        open_inputs(of_set(kl))
    source = Path(out).parent / "set"
    report = json.loads(mezzotint("data", "derive", source, out, "--model", model, "--json").out)
    assert report["scale"] == manifest.latents.scale
    assert read_manifest(out) == manifest
    shown = mezzotint("data", "inspect", out).out
    assert f"latents of 12 samples: mean {manifest.latents.mean:.6g}" in shown
    tree = json.loads(mezzotint("data", "inspect", out, "--json").out)
    assert tree["latents"] == {**manifest.latents.model_dump(), "scale": manifest.latents.scale}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 32}, "are of images of 32 pixels, and .* takes 16; derive the set again"),
        ({"fit": "crop"}, r"data.encoder .* of fit pad and .* on fit crop"),
        ({"filter": "box"}, r"data.encoder .* of filter bicubic and .* on filter box"),
    ],
)
def test_latents_of_images_prepared_otherwise_are_refused(kl, changed, message):
    _, manifest, out = kl
    other = manifest.preprocessing.model_copy(update=changed)
    write_manifest(out, manifest.model_copy(update={"preprocessing": other}))
    with pytest.raises(UserError, match=message):
        open_inputs(of_set(kl))


def test_codes_are_not_taken_for_the_latents_of_the_same_model(tmp_path, write_set):
    vq = AutoencoderConfig(image_size=16, channels=4, pyramid=STRIDED, bottleneck=EMA)
    model, out = saved(tmp_path / "vq", vq), str(tmp_path / "out")
    data = DataConfig(url=str(write_set()))
    assert encode_set(data, model, out).latents is None
    made = encode_set(data, model, out, latents=True)
    assert made.latents.samples == 12
    assert encode_set(data, model, out, latents=True) == made


def test_statistics_do_not_depend_on_the_batch(kl, tmp_path):
    model, manifest, _ = kl
    again = encode_set(DataConfig(url=str(tmp_path / "set")), model, str(tmp_path / "b"), batch=12)
    assert again.latents.mean == pytest.approx(manifest.latents.mean, rel=1e-6)
    assert again.latents.std == pytest.approx(manifest.latents.std, rel=1e-6)


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.processes
@pytest.mark.parametrize("config", [HIERARCHY, KL], ids=["codes", "latents"])
def test_any_number_of_processes_derives_the_same_shards(mezzotint, tmp_path, write_set, config):
    model, source = saved(tmp_path / "model", config), write_set()

    def derived(name, *words):
        out = tmp_path / name
        outcome = mezzotint("data", "derive", source, out, "--model", model, *words)
        assert outcome.code == 0, outcome.err
        assert "samples 12/12" in outcome.out
        return files_of(out)

    one = derived("one", "--batch", "5", "--processes", "1")
    assert any(name.endswith(".tar") for name in one)
    for count in (2, 4):
        assert derived(str(count), "--batch", "5", "--processes", count, "--device", "cpu") == one


@pytest.mark.parametrize("config", [HIERARCHY, KL], ids=["codes", "latents"])
def test_an_interrupted_derivation_goes_on_after_the_shards_that_are_written(
    tmp_path, write_set, monkeypatch, config
):
    model, data = saved(tmp_path / "model", config), DataConfig(url=str(write_set(samples=23)))
    whole, out = tmp_path / "whole", tmp_path / "out"
    manifest = encode_set(data, model, str(whole), batch=4)
    real, encoded = mezzotint.inference.encode._encoder, []

    def encoder(network, *, latents):
        encode, fields = real(network, latents=latents)
        return lambda images: encoded.append(len(images)) or encode(images), fields

    def write(journal, number, shard, real=ShardJournal.write):
        if number == 3:
            raise KeyboardInterrupt
        real(journal, number, shard)

    with monkeypatch.context() as patch:
        patch.setattr(ShardJournal, "write", write)
        with pytest.raises(KeyboardInterrupt):
            encode_set(data, model, str(out), batch=4)
    assert not (out / "manifest.json").exists()
    monkeypatch.setattr(mezzotint.inference.encode, "_encoder", encoder)
    assert encode_set(data, model, str(out), batch=4) == manifest
    assert encoded == [4, 4, 3]  # three shards of 5 were written, and blocks begin at 12
    assert not (out / ".derive").exists()
    assert files_of(out) == files_of(whole)
    other = saved(tmp_path / "other", config, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(ShardJournal, "write", write)
        with pytest.raises(KeyboardInterrupt):
            encode_set(data, other, str(tmp_path / "new"), batch=4)
    encoded.clear()
    encode_set(data, model, str(tmp_path / "new"), batch=4)  # not of the other model
    assert sum(encoded) == 23
    assert files_of(tmp_path / "new") == files_of(whole)
