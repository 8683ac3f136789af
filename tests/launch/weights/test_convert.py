"""Weights of other code in, and out again, as commands."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from models import store
from models.diffusion.condition import Condition
from models.diffusion.dit import DiTConfig
from models.diffusion.prior.network import DiffusionPriorConfig
from models.diffusion.process import ProcessConfig
from models.diffusion.unet.guided_diffusion import to_guided_diffusion
from models.diffusion.unet.network import UNetConfig

NOISE = ProcessConfig(schedule={"kind": "discrete"}, prediction_type="noise")
UNET = UNetConfig(
    image_size=8,
    channels=8,
    multipliers=(1, 2),
    depth=1,
    attention=(4,),
    head_width=8,
    groups=4,
    timestep_offset=1,
    modulation="add",
    resampling="convolution",
    process=NOISE,
)
PRIOR = DiffusionPriorConfig.model_validate(
    {
        **{"dim": 8, "features": {"width": 8}, "length": 4, "width": 16, "layers": 1, "heads": 2},
        "process": {"schedule": {"kind": "discrete", "betas": {"kind": "cosine"}}},
    }
)
DIT = DiTConfig(image_size=8, width=16, layers=1, heads=2, classes=3)
RECIPE = """
name: imported
steps: 1
batch: 1
model: {kind: unet, image_size: 8, channels: 8, multipliers: [1, 2], depth: 1, attention: [4],
  head_width: 8, groups: 4, timestep_offset: 1, modulation: add, resampling: convolution,
  process: {prediction_type: noise, schedule: {kind: discrete}}}
task: {kind: denoising}
data: {url: data/emoji, image: {size: 8}}
optimizer: {lr: {peak: 1.0e-3}}
"""


def saved(config, where):
    """A model directory; returns its state dict."""
    torch.manual_seed(0)
    state = config.build().state_dict()
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}
    store.save(str(where), config, state, card="# test\n")
    return state


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("config", "code", "file"),
    [
        (UNET, "diffusers", "diffusion_pytorch_model.safetensors"),
        (UNET, "guided_diffusion", "model.safetensors"),
        (DIT, "dit", "model.safetensors"),
        (PRIOR, "diffusers", "diffusion_pytorch_model.safetensors"),
    ],
)
def test_exported_weights_can_be_imported_again(mezzotint, tmp_path, recipe, config, code, file):
    state = saved(config, tmp_path / "model")
    out = tmp_path / "out"
    outcome = mezzotint("export", tmp_path / "model", out, "--to", code, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["parameters"] == sum(value.numel() for value in state.values())
    assert report["files"] == [str(out / file), str(out / "config.json")]
    assert (out / "config.json").read_text(encoding="utf-8").startswith("{")
    words = ["import", out, tmp_path / "again", "--from", code]
    if code == "dit":
        tree = yaml.safe_load(RECIPE) | {"model": DIT.model_dump(mode="json")}
        tree["task"]["condition"] = {"kind": "class"}
        recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    if code != "diffusers":
        words += ["--recipe", recipe]
    outcome = mezzotint(*words)
    assert outcome.code == 0, outcome.err
    assert f"{config.kind}, " in outcome.out
    again = store.load(str(tmp_path / "again"))
    assert again.config == config
    assert same(again.state_dict(), state)


def test_settings_of_diffusers_may_be_overridden(mezzotint, tmp_path):
    saved(UNET, tmp_path / "model")
    mezzotint("export", tmp_path / "model", tmp_path / "out", "--to", "diffusers")
    words = ("import", tmp_path / "out", tmp_path / "v", "model.process.prediction_type=v")
    assert mezzotint(*words).code == 0
    assert store.describe(str(tmp_path / "v")).config.process.prediction_type == "v"
    bad = mezzotint("import", tmp_path / "out", tmp_path / "w", "model.process.prediction_type=w")
    assert bad.code == 2
    assert "process.prediction_type" in bad.err


def test_an_imported_network_can_be_loaded(mezzotint, tmp_path, recipe):
    weights = to_guided_diffusion(saved(UNET, tmp_path / "model"), UNET)
    save_file(weights, tmp_path / "theirs.safetensors")
    words = ["--from", "guided_diffusion", "--recipe", recipe]
    outcome = mezzotint("import", tmp_path / "theirs.safetensors", tmp_path / "in", *words)
    assert outcome.code == 0, outcome.err
    x, t = torch.ones(1, 3, 8, 8), torch.tensor([0.5])
    with torch.no_grad():
        one, other = (
            store.load(str(tmp_path / name))(x, t, Condition()) for name in ("in", "model")
        )
    assert torch.equal(one, other)


def test_bad_input_is_refused_by_name(mezzotint, tmp_path, recipe):
    state = saved(UNET, tmp_path / "model")
    weights = to_guided_diffusion(state, UNET)
    file = tmp_path / "theirs.safetensors"
    save_file({**weights, "more": torch.ones(1)}, file)
    pickled = tmp_path / "theirs.ckpt"
    torch.save(weights, pickled)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x", encoding="utf-8")
    out, source = tmp_path / "out", ("--from", "guided_diffusion", "--recipe", recipe)
    for words, message in (
        (("import", tmp_path / "none.safetensors", out, *source), "no such file"),
        (("import", file, out, *source), "unexpected more"),
        (("import", pickled, out, *source), "is not a safetensors file"),
        (("import", pickled, out, *source), "weights_only=True); found = found.get('state_dict'"),
        (("import", file, out, "--from", "guided_diffusion"), "--recipe"),
        (("import", file, out, "--from", "taming", "--recipe", recipe), "of kind unet"),
        (("export", tmp_path / "none", out), "no such directory"),
        (("export", tmp_path / "model", tmp_path / "full"), "already exists"),
        (("export", tmp_path / "model", out, "--to", "dit"), "cannot hold a model of kind unet"),
    ):
        outcome = mezzotint(*words)
        assert outcome.code == 2, (words, outcome.err)
        assert message in outcome.err
        assert "Traceback" not in outcome.err
    assert not out.exists()
    assert load_file(file).keys() == {*weights, "more"}
