"""Every check passes on a sound run and fails where the fault that it is about is put in."""

import io
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_pipeline.config import DataConfig, Selection
from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.sets.write import write_manifest
from data_pipeline.text.tokenizer import Tokenizer
from launch.conform.causality import prior_causality
from launch.conform.last_step import last_timestep
from launch.conform.latents import latent_scale
from launch.conform.null_captions import null_captions
from launch.conform.perceptual import perceptual_gradient
from launch.conform.processes import relative_difference
from launch.conform.trained_run import TrainedRun
from launch.conform.zero_convolutions import zero_convolution_order
from mezzotint.inference.encode import encode_set
from models import store
from trainer.recipe import load
from trainer.tasks import autoregressive, perceptual
from trainer.tasks.conditioning import captions

CPU = torch.device("cpu")
TEXT = {"tokenizer": "tokenizer", "length": 6}
DATA = {
    "url": "data/emoji",
    "image": {"size": 16},
    "select": [{"split": "composition", "part": "train"}],
}
DISCRETE = {"kind": "discrete", "steps": 10}
DIFFUSION = {
    "model": {
        "kind": "text_diffusion", "image_size": 16, "patch": 4, "width": 16, "layers": 1,
        "heads": 1, "text_vocab": 40, "text_length": 6,
        "process": {"schedule": DISCRETE, "prediction_type": "v"},
    },
    "task": {"kind": "denoising", "condition": {"kind": "text", "drop": 0.25}},
    "data": {**DATA, "text": TEXT},
}  # fmt: skip
ADVERSARIAL = {
    "model": {
        "kind": "autoencoder", "image_size": 16, "channels": 4,
        "pyramid": {"kind": "strided", "width": 8, "halvings": 2, "blocks": 1, "residual_width": 8},
        "bottleneck": {"kind": "gaussian"},
    },
    "task": {
        "kind": "adversarial", "discriminator": {"width": 8, "layers": 2}, "weight": 0.5,
        "start_step": 100, "perceptual": {"kind": "random", "widths": [8, 16], "weight": 0.1},
    },
    "data": DATA,
}  # fmt: skip
PRIOR = {
    "model": {
        "kind": "prior", "text_vocab": 40, "text_length": 6, "image_vocab": 8, "grid": [4, 4],
        "width": 16, "layers": 2, "heads": 1, "head_width": 16,
    },
    "task": {"kind": "autoregressive", "caption_drop": 0.25},
    "data": {"url": "codes", "arrays": ["codes"], "text": TEXT},
}  # fmt: skip


def member(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    content = Tokenizer.train([f"woman {number} pilot" for number in range(40)], 40)
    (directory / "tokenizer.model").write_bytes(content)
    return directory


@pytest.fixture
def trained(tmp_path, tokenizer):
    """Makes the directory of a finished run of a recipe, whose weights are random."""

    def make(settings, name="run"):
        tree = {
            "name": name,
            "steps": 1,
            "batch": 2,
            "optimizer": {"lr": {"peak": 0.001}},
            **settings,
        }
        data = dict(tree["data"])
        if data["url"] == "codes":
            data["url"] = str(tmp_path / "codes")
            codes = [member(np.full((4, 4), number)) for number in range(8)]
            samples = [
                RawSample(f"s{number}", {"txt": b"woman cook", "codes.npy": each}, {})
                for number, each in enumerate(codes)
            ]
            write_shards(
                samples, data["url"], name="codes", licence="CC0", provenance={},
                shard_size=8, fields={"txt": "caption", "codes.npy": "codes"},
            )  # fmt: skip
        if "text" in data:
            data["text"] = {**data["text"], "tokenizer": str(tokenizer)}
        directory = tmp_path / name
        directory.mkdir()
        (directory / "recipe.yaml").write_text(yaml.safe_dump(tree | {"data": data}))
        recipe = load(directory / "recipe.yaml")
        torch.manual_seed(0)
        model = recipe.model.build()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn(weight.shape))
        reads = {} if "text" not in data else {
            "tokenizer": (tokenizer / "tokenizer.model").read_bytes(), "text_length": 6
        }  # fmt: skip
        store.save(str(directory / "model"), recipe.model, model.state_dict(), card="", **reads)
        (directory / "summary.json").write_text("{}")
        return directory

    return make


def test_a_diffusion_model(trained, mezzotint):
    path = trained(DIFFUSION)
    done = mezzotint("conform", path, "--no-updates", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["passed"]
    assert [each["name"] for each in report["runs"]["run"]] == [
        "share without condition",
        "last timestep is trained",
    ]


def test_captions_that_are_never_dropped(trained, monkeypatch):
    run = TrainedRun.open(trained(DIFFUSION), CPU)
    assert null_captions(run).passed
    monkeypatch.setattr(captions, "drop_text", lambda text, share, rng: text)
    assert not null_captions(run).passed


def test_a_prior(trained, monkeypatch, mezzotint):
    path = trained(PRIOR)
    run = TrainedRun.open(path, CPU)
    assert null_captions(run).passed
    assert prior_causality(run).passed
    monkeypatch.setattr(autoregressive, "drop_text", lambda text, share, rng: text)
    assert not null_captions(run).passed
    for block in run.model.blocks:
        block.attention.causal = False
    assert not prior_causality(run).passed


def test_a_perceptual_loss(trained, monkeypatch):
    run = TrainedRun.open(trained(ADVERSARIAL), CPU)
    assert perceptual_gradient(run).passed
    call = perceptual.PerceptualTerm.__call__
    monkeypatch.setattr(perceptual.PerceptualTerm, "__call__", torch.no_grad()(call))
    assert not perceptual_gradient(run).passed


def test_a_run_that_fails_a_check_ends_with_1(trained, monkeypatch, mezzotint):
    path = trained(DIFFUSION)
    monkeypatch.setattr(captions, "drop_text", lambda text, share, rng: text)
    done = mezzotint("conform", path, "--no-updates")
    assert done.code == 1
    assert "failed  share without condition: 0.0% of 512 samples have no text" in done.out


def test_weight_zero_at_the_last_step(trained):
    process = {"schedule": {**DISCRETE, "zero_terminal_snr": True}, "prediction_type": "v"}
    model = {**DIFFUSION["model"], "process": process}
    task = {**DIFFUSION["task"], "weight": {"kind": "min_snr"}}
    run = TrainedRun.open(trained({**DIFFUSION, "model": model, "task": task}, "cancelled"), CPU)
    found = last_timestep(run)
    assert not found.passed
    assert "gradient 0" in found.measured
    task = {**DIFFUSION["task"], "weight": {"kind": "v"}}
    run = TrainedRun.open(trained({**DIFFUSION, "model": model, "task": task}, "sound"), CPU)
    assert last_timestep(run).passed


def test_the_scale_of_latents(trained, tmp_path):
    stage = str(trained(ADVERSARIAL, "stage") / "model")
    url = str(tmp_path / "latents")
    select = (Selection(split="composition", part="test"),)
    manifest = encode_set(DataConfig(url="data/emoji", select=select), stage, url)
    settings = {
        "model": {
            "kind": "dit", "image_size": 4, "image_channels": 4, "patch": 2, "width": 8,
            "layers": 1, "heads": 1,
        },
        "task": {"kind": "denoising", "target": {"kind": "latents"}},
        "data": {"url": url, "encoder": stage},
    }  # fmt: skip
    path = trained(settings, "sound")
    assert latent_scale(TrainedRun.open(path, CPU)).passed
    off = manifest.latents.model_copy(update={"std": 1.2 * manifest.latents.std})
    write_manifest(url, manifest.model_copy(update={"latents": off}))
    found = latent_scale(TrainedRun.open(path, CPU))
    assert not found.passed
    assert "standard deviation 0.8" in found.measured


def png(rng, mode):
    shape = (8, 8, 3) if mode == "RGB" else (8, 8)
    content = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(content, "png")
    return content.getvalue()


def test_the_order_of_zero_convolutions(trained, tmp_path, monkeypatch):
    rng, url = np.random.default_rng(0), str(tmp_path / "pairs")
    members = [
        {"txt": b"woman pilot", "png": png(rng, "RGB"), "edges.png": png(rng, "L")}
        for _ in range(8)
    ]
    write_shards(
        [RawSample(f"s{number}", each, {}) for number, each in enumerate(members)], url,
        name="pairs", licence="CC0", provenance={}, shard_size=8,
        fields={"txt": "caption", "png": "image", "edges.png": "edges"},
    )  # fmt: skip
    unet = {
        "kind": "unet", "image_size": 8, "channels": 8, "multipliers": [1, 2], "depth": 1,
        "attention": [4], "head_width": 4, "groups": 4,
        "text": {"vocab": 40, "length": 6, "width": 8, "layers": 1, "heads": 1},
    }  # fmt: skip
    condition = {"condition": {"kind": "text"}}
    data = {"url": url, "image": {"size": 8}, "text": TEXT}
    task = {"kind": "denoising", **condition}
    base = trained({"model": unet, "task": task, "data": data}, "base")
    control = {
        "model": {"kind": "control", "base": unet, "hint": {"channels": 1, "stride": 1}},
        "task": {"kind": "control", "base": str(base), **condition},
        "data": {**data, "hint": {"name": "edges", "channels": 1}},
    }
    run = TrainedRun.open(trained(control, "control"), CPU)
    found = zero_convolution_order(run)
    assert found.passed, found.measured
    share = null_captions(run)
    assert share.passed
    assert "the recipe says 50%" in share.measured
    monkeypatch.setattr("models.diffusion.control.network.zeroed", lambda layer: layer)
    assert not zero_convolution_order(run).passed


def test_relative_difference():
    start, one = {"w": torch.zeros(3)}, {"w": torch.tensor([3.0, 0.0, 4.0])}
    assert relative_difference(start, one, one) == 0
    assert relative_difference(start, one, {"w": torch.tensor([3.0, 0.0, 3.0])}) == pytest.approx(
        0.2
    )


@pytest.mark.processes
def test_two_processes_through_the_adversarial_step(trained, mezzotint):
    done = mezzotint("conform", trained(ADVERSARIAL), "--json")
    assert done.code == 0, done.out + done.err
    results = {each["name"]: each for each in json.loads(done.out)["runs"]["run"]}
    assert results["two processes update as one"]["passed"]


@pytest.mark.parametrize(
    ("written", "said"),
    [((), "it has no recipe.yaml"), (("recipe.yaml",), "its training is not finished")],
)
def test_no_finished_run(tmp_path, refused, written, said):
    for name in written:
        (tmp_path / name).write_text("")
    assert said in refused("conform", tmp_path)
