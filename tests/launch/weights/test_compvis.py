"""CompVis checkpoints in, and out again, as commands."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mezzotint.common.latent_scaling import LatentScaling
from mezzotint.common.preprocessing import Preprocessing
from models import frozen_text, store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.taming_weights import from_taming, to_taming
from models.clip import token_features
from models.clip_transformers import to_clip_text_model
from models.diffusion.control.network import ControlConfig
from models.diffusion.control.released import from_released
from models.diffusion.unet.compvis import to_compvis
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage
from models.torchvision_compat import ensure_torchvision

BETAS = {"kind": "sqrt_linear", "first": 0.0015, "last": 0.0195}
UNET = {
    "kind": "unet",
    "image_size": 8,
    "image_channels": 4,
    "channels": 8,
    "multipliers": [1, 2],
    "depth": 1,
    "attention": [4],
    "head_width": 8,
    "groups": 4,
    "timestep_offset": 1,
    "modulation": "add",
    "resampling": "convolution",
    "process": {
        "prediction_type": "noise",
        "schedule": {"kind": "discrete", "betas": BETAS},
    },
}
TEXT = {"form": "ldm", "vocab": 9, "length": 5, "width": 12, "layers": 2, "heads": 2}
CAPTIONS = UNetConfig(**UNET, text={**TEXT, "head_width": 4}, transformer={})
CLASSES = UNetConfig(**UNET, classes=3, null_class=True, class_token=6, transformer={})
PLAIN = UNetConfig(**UNET)
PYRAMID = {"kind": "resnet", "width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
STAGE = {"kind": "autoencoder", "image_size": 16, "channels": 4}
KL = AutoencoderConfig(
    **STAGE, pyramid={**PYRAMID, "attention": [8]}, bottleneck={"kind": "gaussian"}
)
VQ = AutoencoderConfig(
    **STAGE, pyramid=PYRAMID, bottleneck={"kind": "vq", "codes": 8, "legacy_beta": True}
)
CONDITIONS = {
    "text": {"kind": "text"},
    "class": {"kind": "class"},
    "features": {"kind": "features", "encoder": {"kind": "clip", "model": "runs/clip/model"}},
}


def saved(config, where, seed=0, **record):
    """A model directory with random weights; returns its state dict."""
    torch.manual_seed(seed)
    state = config.build().state_dict()
    state = {name: value + 0.1 * torch.randn_like(value) for name, value in state.items()}
    store.save(str(where), config, state, card="# test\n", **record)
    return state


def recipe(where, config):
    kinds = getattr(config, "conditioning", ())
    task = {"kind": "denoising", "target": {"kind": "array", "name": "latents"}}
    if kinds:
        task["condition"] = CONDITIONS[next(iter(kinds))]
    if isinstance(config, AutoencoderConfig):
        task = {"kind": "reconstruction"}
    tree = {
        "name": "imported",
        "steps": 1,
        "batch": 1,
        "model": config.model_dump(mode="json"),
        "task": task,
        "data": {"url": "data/emoji", "image": {"size": 16}},
        "optimizer": {"lr": {"peak": 1.0e-3}},
    }
    where.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return where


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("config", "stage"), [(CAPTIONS, KL), (CLASSES, VQ), (PLAIN, KL)])
def test_a_checkpoint_comes_back_bit_for_bit(mezzotint, tmp_path, config, stage):
    first = saved(stage, tmp_path / "b", seed=1)
    digest = store.describe(str(tmp_path / "b")).digest
    scaling = LatentScaling(mean=0, std=4, samples=9)
    record = FirstStage(model=str(tmp_path / "b"), digest=digest, scaling=scaling)
    state = saved(config, tmp_path / "a", first_stage=record)
    outcome = mezzotint("export", tmp_path / "a", tmp_path / "out", "--to", "compvis", "--json")
    assert outcome.code == 0, outcome.err
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert float(made["scale_factor"]) == 0.25
    prefixes = {name.split(".")[0] for name in made if "." in name}
    conditioned = {"cond_stage_model"} if config.conditioning else set()
    assert prefixes == {"model", "first_stage_model"} | conditioned
    recipes = [recipe(tmp_path / f"{n}.yaml", each) for n, each in enumerate((config, stage))]
    words = ("--from", "compvis", "--recipe", recipes[0], "--first-stage-recipe", recipes[1])
    file = tmp_path / "out" / "model.safetensors"
    outcome = mezzotint("import", file, tmp_path / "in", *words, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["scale"] == 0.25
    assert report["parameters"]["model"] == sum(value.numel() for value in state.values())
    assert same(store.load(str(tmp_path / "in" / "model")).state_dict(), state)
    again = store.describe(str(tmp_path / "in" / "model")).first_stage
    assert (again.digest, again.scaling.scale) == (digest, 0.25)
    assert same(store.load(str(tmp_path / "in" / "first_stage")).state_dict(), first)


def test_averages_without_dots_in_their_names_are_the_weights(mezzotint, tmp_path):
    live, average = (saved(CLASSES, tmp_path / str(seed), seed) for seed in (0, 1))
    made = to_compvis(live, CLASSES)
    prefix = "model.diffusion_model."
    for name, value in to_compvis(average, CLASSES).items():
        if name.startswith(prefix):
            dotless = name.removeprefix("model.").replace(".", "")
            made[f"model_ema.{dotless}"] = value
    made |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
    assert "model_ema.diffusion_modelinput_blocks00weight" in made
    file = tmp_path / "file.safetensors"
    save_file(made, file)
    words = ("--from", "compvis", "--recipe", recipe(tmp_path / "r.yaml", CLASSES))
    outcome = mezzotint("import", file, tmp_path / "in", *words, "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["averaged"] is True
    got = store.load(str(tmp_path / "in" / "model")).state_dict()
    # only the UNet has averages there
    assert same(got, {**average, "label.weight": live["label.weight"]})
    save_file({**made, "model_ema.diffusion_modelmore": torch.ones(1)}, file)
    outcome = mezzotint("import", file, tmp_path / "other", *words)
    assert outcome.code == 2
    assert "model_ema.diffusion_modelmore: is the average of no weight" in outcome.err


def test_another_schedule_a_strange_name_and_pickle_are_refused(mezzotint, tmp_path):
    made = to_compvis(saved(PLAIN, tmp_path / "a"), PLAIN)
    path = recipe(tmp_path / "r.yaml", PLAIN)
    words = ("--from", "compvis", "--recipe", path)
    file, pickled = tmp_path / "file.safetensors", tmp_path / "file.ckpt"
    torch.save(made, pickled)
    save_file({**made, "more": torch.ones(1)}, tmp_path / "more.safetensors")
    save_file(made, file)
    first = to_taming(saved(KL, tmp_path / "b"), KL)
    whole, stage = tmp_path / "whole.safetensors", recipe(tmp_path / "stage.yaml", KL)
    save_file({**made, **{f"first_stage_model.{key}": each for key, each in first.items()}}, whole)
    for name, options, message in (
        (file, ("model.process.schedule.betas.last=0.012",), "betas.first"),
        (tmp_path / "more.safetensors", (), "more: is no weight of a CompVis checkpoint"),
        (pickled, (), "convert it to safetensors first"),
        (tmp_path / "none.safetensors", (), "no such file"),
        (file, ("--first-stage-recipe", path), "holds no first stage"),
        (whole, ("--first-stage-recipe", path), "model.kind: unet: must be autoencoder"),
        (whole, ("--first-stage-recipe", stage), "--latent-scale"),
    ):
        outcome = mezzotint("import", name, tmp_path / "in", *words, *options)
        assert outcome.code == 2, outcome.out
        assert message in outcome.err
        assert "Traceback" not in outcome.err
    assert not (tmp_path / "in").exists()


def test_a_mean_of_latents_is_moved_into_the_first_stage(mezzotint, tmp_path):
    saved(KL, tmp_path / "b", seed=1)
    digest = store.describe(str(tmp_path / "b")).digest
    scaling = LatentScaling(mean=0.5, std=2, samples=9)
    record = FirstStage(model=str(tmp_path / "b"), digest=digest, scaling=scaling)
    saved(PLAIN, tmp_path / "a", first_stage=record)
    out = tmp_path / "out"
    assert mezzotint("export", tmp_path / "a", out, "--to", "compvis").code == 0
    named = load_file(out / "model.safetensors")
    prefix = "first_stage_model."
    there = {key.removeprefix(prefix): v for key, v in named.items() if key.startswith(prefix)}
    own, other = store.load(str(tmp_path / "b")), KL.build().eval()
    other.load_state_dict(from_taming(there, KL))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latent, theirs = own.encode(image), other.encode(image)
        back = own.decode(latent), other.decode(theirs)
    assert torch.allclose(theirs, latent - 0.5, atol=1e-6)
    assert torch.allclose(*back, atol=1e-5)


def test_a_control_of_the_released_layout_comes_back(mezzotint, tmp_path):
    base = {**UNET, "features": {"width": 6}, "transformer": {}}
    config = ControlConfig(base=base, hint={"channels": 1, "stride": 2})
    state = saved(config, tmp_path / "a")
    out = tmp_path / "out"
    outcome = mezzotint("export", tmp_path / "a", out, "--to", "compvis")
    assert outcome.code == 0, outcome.err
    assert same(from_released(load_file(out / "model.safetensors"), config), state)
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["hint_channels"] == 1


WIDTH = 64


def tower():
    """A text tower of OpenAI's form with random weights, and its weights as transformers'."""
    ensure_torchvision()
    from open_clip.model import QuickGELU
    from open_clip.transformer import TextTransformer

    torch.manual_seed(3)
    network = TextTransformer(
        context_length=7, vocab_size=49408, width=WIDTH, heads=1, layers=2, act_layer=QuickGELU,
        output_dim=WIDTH, proj_type="none", pool_type="none",
    ).eval()  # fmt: skip
    return network, to_clip_text_model(dict(network.state_dict()))


def test_the_text_tower_of_a_checkpoint_is_read_with_openais_tokenizer(mezzotint, tmp_path):
    config = UNetConfig(**UNET, features={"width": WIDTH}, transformer={})
    network, named = tower()
    made = to_compvis(saved(config, tmp_path / "a"), config)
    prefix = "cond_stage_model.transformer."
    made |= {f"{prefix}{name}": value for name, value in named.items()}
    made[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(7)[None]
    file, out = tmp_path / "file.safetensors", tmp_path / "in"
    save_file(made, file)
    path = recipe(tmp_path / "r.yaml", config)
    words = ("--from", "compvis", "--recipe", path, "--json")
    done = mezzotint("import", file, out, *words)
    assert done.code == 0, done.err
    counted = json.loads(done.out)["parameters"]
    assert counted["text_encoder"] == sum(value.numel() for value in named.values())
    source = store.describe(str(out / "model")).text_encoder
    assert source.directory == str(out / "text_encoder")
    reader = frozen_text.load(source, None)
    tokens = reader.tokens(["a cat", ""])
    assert tokens[1].tolist() == [49406] + [49407] * 6, "padded with the end, as it was trained"
    with torch.no_grad():
        torch.testing.assert_close(reader(["a cat", ""]), token_features(network, tokens))
    missing = "text_model.encoder.layers.0.mlp.fc1.weight"
    for changes, message in (
        ({f"{prefix}{missing}": None}, f"{missing}: is missing"),
        ({f"{prefix}text_model.more": torch.ones(1)}, "holds other weights than those of CLIP's"),
        ({f"{prefix}{name}": value[..., :32] for name, value in named.items()}, "features of 32"),
    ):
        changed = {name: each for name, each in {**made, **changes}.items() if each is not None}
        save_file({name: each.contiguous() for name, each in changed.items()}, file)
        refused = mezzotint("import", file, tmp_path / "no", *words)
        assert refused.code == 2, refused.out
        assert message in refused.err
        assert not (tmp_path / "no").exists()


def test_how_images_were_prepared_is_recorded_as_the_options_or_the_recipes_say(
    mezzotint, tmp_path
):
    first = {
        f"first_stage_model.{k}": v for k, v in to_taming(saved(KL, tmp_path / "b"), KL).items()
    }
    file = tmp_path / "file.safetensors"
    save_file({**to_compvis(saved(PLAIN, tmp_path / "a"), PLAIN), **first}, file)
    recipes = [recipe(tmp_path / f"{n}.yaml", each) for n, each in enumerate((PLAIN, KL))]
    words = ("--from", "compvis", "--recipe", recipes[0], "--first-stage-recipe", recipes[1])
    words += ("--latent-scale", "0.5")
    for name, options, wanted in (
        ("own", (), Preprocessing(size=16)),
        ("stated", ("--image-fit", "crop"), Preprocessing(size=16, fit="crop")),
    ):
        done = mezzotint("import", file, tmp_path / name, *words, *options)
        assert done.code == 0, done.err
        for part in ("model", "first_stage"):
            assert store.describe(str(tmp_path / name / part)).preprocessing == wanted
