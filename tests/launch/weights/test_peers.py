"""Exported folders, opened by diffusers, transformers and open_clip: the same outputs as here."""

import json
import shutil

import pytest
import torch
from peer_outputs import furthest, outputs_of_peers
from safetensors.torch import load_file, save_file

from data_pipeline.text.t5_tokenizer import tokenizer_of
from data_pipeline.text.tokenizer import Tokenizer
from launch.weights.convert import export_model, import_weights
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import LatentScaling
from models import frozen_text, store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.clip import ClipConfig
from models.diffusion.condition import Condition
from models.diffusion.control.network import ControlConfig
from models.diffusion.process import denoiser
from models.diffusion.sampling import DiffusionSampling
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage
from models.text_source import ClipText, OpenClipText
from models.torchvision_compat import ensure_torchvision

PROMPTS = ["a red circle", "Two BLUE squares, left of a green star, above a ΛΟΓΟΣ"]
CAPTIONS = [*PROMPTS, "", "zebra", "two  blue\tstars " * 9]
MEAN, SCALE = 0.3, 1.7
KL = AutoencoderConfig(
    image_size=16,
    channels=4,
    pyramid={
        "kind": "resnet",
        "width": 8,
        "multipliers": (1, 2),
        "blocks": 1,
        "groups": 4,
        "attention": (16,),
    },
    bottleneck={"kind": "gaussian"},
)
VQ = KL.model_copy(
    update={
        "pyramid": KL.pyramid.model_copy(update={"attention": ()}),
        "bottleneck": AutoencoderConfig.model_validate(
            {**KL.model_dump(), "bottleneck": {"kind": "ema_vq", "codes": 16}}
        ).bottleneck,
    }
)
CLIP = ClipConfig(
    image_size=16,
    patch=8,
    vision_width=16,
    vision_layers=1,
    text_vocab=60,
    text_length=12,
    text_width=16,
    text_layers=2,
    head_width=8,
    embed=8,
)
UNET = UNetConfig(
    image_size=8,
    image_channels=4,
    channels=8,
    multipliers=(1, 2),
    depth=1,
    attention=(4,),
    head_width=8,
    groups=4,
    modulation="add",
    resampling="convolution",
    features={"width": 16},
    transformer={"depth": 1},
    process={
        "prediction_type": "v",
        "schedule": {"kind": "discrete", "betas": {"kind": "sqrt_linear"}},
    },
)
CONTROL = ControlConfig(base=UNET, hint={"channels": 1, "stride": 2})
SOLVERS = {"DDIMScheduler": "ddim", "DPMSolverMultistepScheduler": "dpm_solver_pp_2m"}


def saved(where, config, **more):
    """A model directory of random weights that all matter."""
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(5)
    state = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in config.build().state_dict().items()
    }
    store.save(str(where), config, state, card="# test\n", **more)


def open_clip_checkpoint(where):
    """A small CLIP with QuickGELU, OpenAI's vocabulary and 12 tokens a caption."""
    ensure_torchvision()
    from open_clip.model import CLIP as OpenClip

    where.mkdir()
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    shape = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    torch.manual_seed(3)
    save_file(OpenClip(**shape).state_dict(), where / "open_clip_model.safetensors")
    config = {"model_cfg": shape, "preprocess_cfg": {}}
    (where / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return frozen_text.describe(OpenClipText(checkpoint=str(where))).source


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Model directories, exported."""
    home = tmp_path_factory.mktemp("peers")
    tokenizer = Tokenizer.train([*PROMPTS, "two blue stars"] * 3, 60)
    saved(home / "kl", KL)
    saved(home / "vq", VQ)
    saved(home / "clip", CLIP, tokenizer=tokenizer, text_length=CLIP.text_length)
    text = ClipText(model=str(home / "clip"))
    scaling = LatentScaling(mean=MEAN, std=1 / SCALE, samples=9)
    for name in ("vq", "kl"):
        digest = store.describe(str(home / name)).digest
        record = FirstStage(model=str(home / name), digest=digest, scaling=scaling)
        saved(home / "unet", UNET, first_stage=record, text_encoder=text)
        written = export_model(str(home / "unet"), home / f"{name}_folder", "diffusers")
        assert ("VQModel" in written.note) == (name == "vq")
    openai = open_clip_checkpoint(home / "openai")
    saved(home / "sd", UNET, first_stage=record, text_encoder=openai)
    export_model(str(home / "sd"), home / "sd_folder", "diffusers")
    saved(home / "control", CONTROL)
    export_model(str(home / "clip"), home / "open_clip", "open_clip")
    export_model(str(home / "control"), home / "controlnet", "diffusers")
    return home


@pytest.fixture(scope="module")
def given():
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return {
        "image": image,
        "latents": latents,
        "features": torch.randn(2, 12, 16, generator=generator),
        "hint": torch.rand(2, 1, 16, 16, generator=generator),
        "steps": torch.tensor([3, 941]),
    }


@pytest.fixture(scope="module")
def peers(home, given):
    """Outputs of the peers by name."""
    folder, vq = home / "kl_folder", home / "vq_folder"
    jobs = [
        {
            "job": "pipeline",
            "name": "pipeline",
            "folder": str(folder),
            "prompts": PROMPTS,
            "schedulers": dict.fromkeys(SOLVERS, 20),
            "guidance": 3.0,
        },
        {"job": "network", "name": "kl", "folder": str(folder / "vae"), "kind": "AutoencoderKL"},
        {"job": "network", "name": "vq", "folder": str(vq / "vae"), "kind": "VQModel"},
        {
            "job": "network",
            "name": "unet",
            "folder": str(folder / "unet"),
            "kind": "UNet2DConditionModel",
        },
        {
            "job": "network",
            "name": "control",
            "folder": str(home / "controlnet"),
            "kind": "ControlNetModel",
        },
        {
            "job": "text",
            "name": "text",
            "folder": str(folder / "text_encoder"),
            "prompts": CAPTIONS,
        },
        {
            "job": "text",
            "name": "openai",
            "folder": str(home / "sd_folder" / "text_encoder"),
            "prompts": CAPTIONS,
        },
        {"job": "clip", "name": "clip", "folder": str(home / "open_clip"), "prompts": CAPTIONS},
    ]
    return outputs_of_peers(home, given, jobs)


@pytest.mark.parametrize("name", ["kl", "vq"])
@torch.no_grad()
def test_first_stage_gives_scaled_latents_and_decodes_them(home, given, peers, name):
    vae = store.load(str(home / name))
    latents = (vae.encode(given["image"]) - MEAN) * SCALE
    assert furthest(latents, peers[f"{name}.latents"]) < 1e-4
    decoded = vae.decode(latents / SCALE + MEAN)
    assert furthest(decoded, peers[f"{name}.decoded"].clamp(-1, 1)) < 1e-4


@torch.no_grad()
def test_unet_counts_its_steps_from_0_there(home, given, peers):
    unet = store.load(str(home / "unet"))
    t = (given["steps"] + 1) / 1000
    out = unet(given["latents"], t, Condition(features=given["features"]))
    assert furthest(out, peers["unet.out"]) < 1e-4


@torch.no_grad()
def test_control_gives_the_same_residuals(home, given, peers):
    unet, control = (store.load(str(home / name)) for name in ("unet", "control"))
    t, condition = (given["steps"] + 1) / 1000, Condition(features=given["features"])
    encoding = unet.encode(given["latents"], t, condition)
    residuals = control.residuals(given["latents"], t, condition, given["hint"], encoding)
    assert f"control.residual.{len(residuals)}" not in peers
    for index, residual in enumerate(residuals):
        assert furthest(residual, peers[f"control.residual.{index}"]) < 1e-4


def test_control_comes_back(home, tmp_path):
    words = (home / "controlnet", str(tmp_path / "in"), "diffusers", None)
    import_weights(*words, ["model.base.image_size=8"])
    found = store.load(str(tmp_path / "in"))
    assert found.config.base.image_size == 8
    assert found.config.hint.stride == 2
    export_model(str(tmp_path / "in"), tmp_path / "again", "diffusers")
    one, other = (
        load_file(path / "diffusion_pytorch_model.safetensors")
        for path in (home / "controlnet", tmp_path / "again")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_text_encoder_and_tokenizer_give_the_features_of_captions(home, peers):
    encoder = frozen_text.load(ClipText(model=str(home / "clip")), tokenizer_of)
    assert torch.equal(encoder.tokens(CAPTIONS), peers["text.tokens"])
    assert furthest(encoder(CAPTIONS), peers["text.hidden"]) < 1e-5


def test_open_clip_checkpoint_is_written_with_its_tokenizer_and_read_again(home, peers, tmp_path):
    import_weights(home / "sd_folder", str(tmp_path / "in"), "diffusers", None, [])
    again = store.describe(str(tmp_path / "in" / "model")).text_encoder
    assert again.kind == "clip_text"
    for source in (OpenClipText(checkpoint=str(home / "openai")), again):
        encoder = frozen_text.load(source, tokenizer_of)
        assert torch.equal(encoder.tokens(CAPTIONS), peers["openai.tokens"])
        assert furthest(encoder(CAPTIONS), peers["openai.hidden"]) < 1e-5


@pytest.mark.parametrize("scheduler", SOLVERS)
@torch.no_grad()
def test_pipeline_samples_the_same_images(home, given, peers, scheduler):
    encoder = frozen_text.load(ClipText(model=str(home / "clip")), tokenizer_of)
    unet, vae = store.load(str(home / "unet")), store.load(str(home / "kl"))
    sampling = DiffusionSampling.model_validate(
        {
            "solver": {"kind": SOLVERS[scheduler]},
            "steps": 20,
            "times": {"kind": "trailing"},
            "guidance": 3.0,
            "thresholding": {"kind": "none"},
        }
    )
    plain = denoiser(unet)
    run = sampling.sampler_run(
        plain, lambda x, t, c: plain(x, t, c.without_text), unet.process.schedule
    )
    condition = Condition(features=encoder(PROMPTS), empty_features=encoder([""])[0])
    latents = run.solve(given["latents"], condition, torch.Generator())
    images = vae.decode(latents / SCALE + MEAN) / 2 + 0.5
    theirs = peers[f"pipeline.images.{scheduler}"]
    assert furthest(images, theirs) < 1e-3
    one, other = (peers[f"pipeline.images.{name}"] for name in SOLVERS)
    assert furthest(one, other) > 1e-2


@torch.no_grad()
def test_open_clip_opens_an_exported_clip(home, given, peers):
    clip = store.load(str(home / "clip"))
    tokens = Tokenizer(store.tokenizer_bytes(str(home / "clip")))(CAPTIONS, CLIP.text_length)
    assert torch.equal(tokens, peers["clip.tokens"])
    assert furthest(clip.encode_text(tokens), peers["clip.text"]) < 1e-5
    assert furthest(clip.encode_image(given["image"]), peers["clip.image"]) < 1e-5
    assert peers["clip.mean"].tolist() == [0.5] * 3


@pytest.fixture(scope="module")
def imported(home):
    import_weights(home / "kl_folder", str(home / "in"), "diffusers", None, [])
    return home / "in"


@torch.no_grad()
def test_folder_comes_back_as_a_system(home, given, peers, imported):
    info = store.describe(str(imported / "model"))
    assert info.config.process == UNET.process
    assert info.first_stage.scaling.scale == pytest.approx(SCALE)
    encoder = frozen_text.load(info.text_encoder, tokenizer_of)
    assert torch.equal(encoder.tokens(CAPTIONS), peers["text.tokens"])
    assert furthest(encoder(CAPTIONS), peers["text.hidden"]) < 1e-5
    t = (given["steps"] + 1) / 1000
    unet = store.load(str(imported / "model"))
    out = unet(given["latents"], t, Condition(features=given["features"]))
    assert furthest(out, peers["unet.out"]) < 1e-4
    export_model(str(imported / "model"), imported / "again", "diffusers")
    folder = home / "kl_folder"
    for path in sorted(folder.rglob("*.safetensors")):
        one, other = (
            load_file(path),
            load_file(imported / "again" / path.relative_to(home / "kl_folder")),
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "part", ["vae/config.json", "scheduler/scheduler_config.json", "tokenizer"]
)
def test_folder_with_a_missing_part_is_refused(home, tmp_path, part):
    folder = tmp_path / "folder"
    shutil.copytree(home / "kl_folder", folder)
    for gone in (folder / part, folder / f"{part}.json"):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    with pytest.raises(UserError, match=f"{part}.* missing"):
        import_weights(folder, str(tmp_path / "in"), "diffusers", None, [])
    assert not (tmp_path / "in").exists()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def _other_tower(folder):
    config = folder / "text_encoder" / "config.json"
    tree = json.loads(config.read_text()) | {"hidden_size": 24}
    config.write_text(json.dumps(tree))


def _other_latents(folder):
    shutil.rmtree(folder / "vae")
    with_3 = KL.model_copy(update={"channels": 3})
    saved(folder.parent / "three", with_3)
    export_model(str(folder.parent / "three"), folder / "vae", "diffusers")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: _cut(folder / "text_encoder" / "model.safetensors"), "text_encoder/model"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.model").unlink(), "vocab.json: no such"),
        (lambda folder: _cut(folder / "tokenizer" / "tokenizer.model"), "tokenizer.model"),
        (_other_tower, "has features of width 24, and .*unet takes 16"),
        (_other_latents, "unet takes 4 channels, and latents of vae have 3"),
    ],
)
def test_nothing_is_written_of_a_folder_with_a_part_that_cannot_be_read(
    home, tmp_path, damage, message
):
    folder = tmp_path / "folder"
    shutil.copytree(home / "kl_folder", folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        import_weights(folder, str(tmp_path / "in"), "diffusers", None, [])
    assert not (tmp_path / "in").exists()


def test_moved_or_other_first_stage_is_refused(home, tmp_path):
    with pytest.raises(UserError, match="another first stage"):
        export_model(str(home / "unet"), tmp_path / "out", "diffusers", str(home / "vq"))
    assert not (tmp_path / "out").exists()
