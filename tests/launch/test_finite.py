"""NaN and infinite weights, latents, codes, images and metrics stop where they arise, by name."""

import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_run import CONFIGS, write_run

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from evaluation.evaluate import require_finite_metrics
from evaluation.metrics.fid import FrechetDistance
from evaluation.result import EvaluationResult
from launch.sampling.noise_file import NoiseFile, read_noise
from mezzotint.common.digests import sha256
from mezzotint.common.errors import UserError
from mezzotint.inference.config import DalleSystem
from mezzotint.inference.encode import encode_set
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.load import load_generator
from mezzotint.inference.runtime import Runtime
from models import store
from models.autoencoders.autoencoder import Autoencoder
from models.autoencoders.dvae import DVAE
from models.autoencoders.hierarchical import Level
from models.clip import Clip
from models.diffusion.text_diffusion import TextDiffusion
from models.diffusion.unet.network import UNet
from models.finite import NonFiniteError, is_finite, require_finite, require_finite_weights
from models.weights_file import read_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pipeline's run of untrained networks."""
    return write_run(tmp_path_factory.mktemp("run"))


def spoil(directory, value, name=None):
    """Put one value into a weight of a model directory; returns the weight's name."""
    weights = load_file(directory / "model.safetensors")
    name = name or sorted(weights)[len(weights) // 2]
    weights[name].view(-1)[0] = value
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    header = json.loads((directory / "config.json").read_text())
    content = (directory / "model.safetensors").read_bytes()
    header["weights"] = [
        {"file": "model.safetensors", "bytes": len(content), "sha256": sha256(content)}
    ]
    (directory / "config.json").write_text(json.dumps(header))
    return name


COMMANDS = {
    "derive": ("dvae", ("data", "derive", "SET", "OUT", "--model", "MODEL")),
    "latents": ("kl", ("data", "derive", "SET", "OUT", "--model", "MODEL")),
    "levels": ("vqvae2", ("data", "derive", "SET", "OUT", "--model", "MODEL")),
    "sample": ("classes", ("sample", "MODEL", "--class", "1", "--out", "OUT/x.png")),
    "invert": ("classes", ("invert", "MODEL", "PNG", "--class", "1", "--out", "OUT/x.png")),
    "likelihood": ("base", ("likelihood", "MODEL", "SET", "--limit", "4")),
    "export": ("classes", ("export", "MODEL", "OUT", "--to", "diffusers")),
    "evaluate": ("dvae", ("evaluate", "YAML", "autoencoder=MODEL", "--out", "OUT")),
    "cascade": (
        "upsampler",
        ("sample", "RUN", "man cook", "--system", "cascade", "--out", "OUT.png"),
    ),
    "ranker": ("clip", ("sample", "RUN", "man cook", "--system", "dalle", "--out", "OUT.png")),
    "hierarchy": ("bottom", ("sample", "RUN", "a", "--system", "hierarchy", "--out", "OUT.png")),
    "prior": ("prior", ("sample", "RUN", "a", "--system", "plain", "--out", "OUT.png")),
}


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_weight_that_is_not_finite_is_named_and_nothing_is_written(
    refused, run, write_set, png, tmp_path, command, value
):
    name, words = COMMANDS[command]
    root = shutil.copytree(run, tmp_path / "run")
    text = (root / "pipeline.yaml").read_text().replace(str(run), str(root))
    (root / "pipeline.yaml").write_text(text)
    weight = spoil(root / name / "model", value)
    (tmp_path / "given.png").write_bytes(png())
    tree = {"kind": "reconstruction", "name": "x", "features": None}
    tree["images"] = {"url": str(write_set()), "split": "halves"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(tree))
    places = {
        "SET": tmp_path / "set", "OUT": tmp_path / "out", "MODEL": root / name / "model",
        "RUN": root, "PNG": tmp_path / "given.png", "YAML": tmp_path / "x.yaml",
    }  # fmt: skip

    def placed(word):
        for key, place in places.items():
            word = word.replace(key, str(place))
        return word

    message = refused(*map(placed, words), *(() if command == "export" else ("--processes", "1")))
    assert message.startswith(f"{root / name / 'model'}/model.safetensors: weight {weight}: 1 of ")
    assert "not finite (NaN or infinite)" in message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_weights_that_are_not_finite_are_not_saved_imported_or_read(refused, run, tmp_path):
    config = CONFIGS["classes"]
    weights = store.load(str(run / "classes" / "model")).state_dict()
    name = next(iter(weights))
    broken = {**weights, name: torch.full_like(weights[name], torch.nan)}
    with pytest.raises(UserError, match=f"weight {name}: .* values are not finite"):
        store.save(str(tmp_path / "m"), config, broken, card="")
    assert not (tmp_path / "m").exists()
    foreign = tmp_path / "foreign.safetensors"
    save_file({"time_embed.0.weight": torch.tensor([0.0, -torch.inf])}, foreign)
    words = ("import", foreign, tmp_path / "m", "--from", "guided_diffusion")
    message = refused(*words, "--recipe", "recipes/adm_64.yaml")
    assert message.startswith(f"{foreign}: weight time_embed.0.weight: 1 of 2 values")
    with pytest.raises(UserError, match=r"time_embed.0.weight: 1 of 2"):
        read_weights(foreign)


def test_masks_of_other_libraries_may_hold_minus_infinity():
    mask = torch.full((3, 3), -torch.inf).triu(1)
    require_finite_weights("file", {"text.attn_mask": mask, "ids": torch.arange(3)})
    for value in (torch.nan, torch.inf):
        mask[0, 0] = value
        with pytest.raises(UserError, match=r"file: weight attn_mask: 1 of 9"):
            require_finite_weights("file", {"attn_mask": mask})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_value_that_is_not_finite_is_found(dtype):
    values = torch.zeros(4, 3, dtype=dtype)
    assert is_finite(values)
    assert is_finite(values[:0])
    for bad in (torch.nan, torch.inf, -torch.inf):
        for row, column in ((0, 0), (2, 1), (3, 2)):
            broken = values.index_put(
                (torch.tensor(row), torch.tensor(column)), values.new_tensor(bad)
            )
            with pytest.raises(NonFiniteError, match=f"{'abcd'[row]}: it is not finite"):
                require_finite("it is", broken, "abcd")


def poisoned(monkeypatch, kind, method, rows, value=torch.nan):
    """Make a network's method return a value that is not finite for some rows of a batch."""
    original = getattr(kind, method)

    def changed(self, *given, **named):
        found = original(self, *given, **named).clone(memory_format=torch.contiguous_format)
        for row in rows:
            if row < len(found):
                found[row].view(-1)[0] = value
        return found

    monkeypatch.setattr(kind, method, changed)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("name", "kind", "method", "what"),
    [
        ("kl", Autoencoder, "hidden", "array 'latents' is"),
        ("dvae", DVAE, "logits", "the logits of its codes are"),
        ("vqvae2", Level, "hidden", "the encoder's output is"),
    ],
)
def test_a_sample_whose_codes_or_latents_overflow_is_named_and_no_set_is_left(
    refused, run, write_set, tmp_path, monkeypatch, name, kind, method, what, value
):
    url, out = write_set(), tmp_path / "out"
    poisoned(monkeypatch, kind, method, [1], value)
    words = (
        "data",
        "derive",
        url,
        out,
        "--model",
        run / name / "model",
        "--batch",
        "6",
        "--processes",
        1,
    )
    message = refused(*words)
    assert message.startswith(f"{url}: sample '0001': {what} not finite")
    assert not out.exists() or not list(out.iterdir())


def test_shards_written_before_a_sample_fails_are_removed(run, write_set, tmp_path, monkeypatch):
    url, out, calls = write_set(), tmp_path / "out", []
    original = DVAE.logits

    def later(self, image):
        calls.append(len(image))
        return original(self, image) * (torch.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(DVAE, "logits", later)
    model = str(run / "dvae" / "model")
    with pytest.raises(UserError, match="sample '0010'"):
        encode_set(DataConfig(url=str(url)), model, str(out), batch=5)
    assert calls == [5, 5, 2]
    assert list(out.iterdir()) == []


def test_images_noise_and_bits_that_are_not_finite_are_named(
    refused, run, write_set, png, tmp_path, monkeypatch
):
    (tmp_path / "given.png").write_bytes(png())
    out, model = tmp_path / "x.png", run / "classes" / "model"
    poisoned(monkeypatch, UNet, "forward", [1])
    sample = ("sample", model, "--class", "1", "--number", "3", "--processes", 1, "--out", out)
    assert refused(*sample).startswith("image 1 of class 1: the image is not finite")
    inverted = ("invert", model, tmp_path / "given.png", tmp_path / "given.png", "--class", "1")
    message = refused(*inverted, "--steps", "3", "--processes", 1, "--out", out)
    assert message.startswith(f"{tmp_path / 'given.png'}: its noise is not finite")
    assert not list(tmp_path.glob("x.*"))


def test_logits_scores_and_bits_that_are_not_finite_are_named(
    refused, run, write_set, tmp_path, monkeypatch
):
    url, out = write_set(), tmp_path / "x.png"
    words = ("likelihood", run / "base" / "model", url, "--limit", "4", "--steps", "3")
    with monkeypatch.context() as patched:
        poisoned(patched, TextDiffusion, "forward", [0])
        message = refused(*words, "--processes", 1)
    assert message.startswith("sample '00")
    assert "its bits per dimension are not finite" in message
    poisoned(monkeypatch, Clip, "encode_image", [2])
    words = ("sample", run, "man cook", "--out", out, "--processes", 1)
    message = refused(*words, "--system", "dalle")
    assert message.startswith("image 2 of 'man cook': its CLIP score is not finite")


def test_a_priors_logits_that_are_not_finite_give_no_codes(run, monkeypatch):
    system = load_generator(
        DalleSystem(prior=str(run / "prior/model"), dvae=str(run / "dvae/model"), candidates=1)
    )
    head = system.prior.image_head
    monkeypatch.setattr(head, "forward", lambda x: type(head).forward(head, x) + torch.nan)
    request = GenerationRequest((Prompt("man cook"), Prompt("pilot")))
    with pytest.raises(NonFiniteError, match="image 0 of 'man cook': the logits of its codes are"):
        system.generate(request)


def test_an_evaluation_names_the_sample_and_writes_no_report(
    refused, run, write_set, tmp_path, monkeypatch
):
    tree = {"kind": "reconstruction", "name": "x", "features": None, "batch": 4}
    tree["autoencoder"] = str(run / "kl" / "model")
    tree["images"] = {"url": str(write_set()), "split": "halves"}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(tree))
    poisoned(monkeypatch, Autoencoder, "decode", [0])
    message = refused("evaluate", path, "--processes", 1, "--out", tmp_path / "scores")
    assert message.startswith("sample '00")
    assert "the image is not finite" in message
    assert not list((tmp_path / "scores").glob("evaluation.*"))
    metrics = {"fd": {"test": FrechetDistance(math.nan, 2, 2, None)}}
    result = EvaluationResult("reconstruction", "x", {}, metrics, {})
    with pytest.raises(UserError, match=r"x: the metric fd/test/value is nan"):
        require_finite_metrics(result)


def test_features_that_are_not_finite_name_the_image():
    runtime = Runtime.of("cpu", "fp32")
    images = torch.arange(7.0)

    def features(block):
        return torch.where(block == 5, torch.nan, block)[:, None]

    with pytest.raises(NonFiniteError, match="image 5: what was computed of it is not finite"):
        runtime.in_blocks(features, images, size=3)


def test_an_array_of_a_set_that_is_not_finite_is_named_with_its_sample(write_set):
    content = io.BytesIO()
    np.save(content, np.array([0.0, np.nan], dtype=np.float32))
    url = write_set(
        changes={3: {"latents.npy": content.getvalue()}}
        | {n: {"latents.npy": sound()} for n in range(12) if n != 3}
    )
    dataset = open_dataset(DataConfig(url=str(url), arrays=("latents",)))
    dataset.batch([0, 1, 2])
    with pytest.raises(UserError, match=r"0003.latents.npy: holds NaN or infinite values"):
        dataset.batch([2, 3])


def sound():
    content = io.BytesIO()
    np.save(content, np.zeros(2, dtype=np.float32))
    return content.getvalue()


def test_noise_that_is_not_finite_is_refused(tmp_path):
    path = tmp_path / "noise.safetensors"
    NoiseFile(torch.full((1, 3, 8, 8), torch.nan), "f" * 64, 5, "log_snr", ("",), ()).save(path)
    with pytest.raises(UserError, match=r"noise.safetensors: weight noise: 192 of 192 values"):
        read_noise(path)
