"""Preprocessing travels with a model: what feeds it takes its own, another one must be forced."""

import io
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_run import CONFIGS

from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.derive import encoded_preprocessing
from data_pipeline.images import decode
from data_pipeline.sets.stored_set import read_manifest
from data_pipeline.sets.write import write_manifest
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common import preprocessing
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import Preprocessing
from mezzotint.inference.config import CascadeSystem, DalleSystem
from mezzotint.inference.encode import encode_set
from mezzotint.inference.load import load_generator
from models import store
from trainer.recipe import load
from trainer.setup import open_inputs

CROP = {"fit": "crop", "filter": "box"}
OUTER, INNER = ("blue", "white", "green"), ("red", "gray", "orange")


def image(number, width=96):
    """A picture whose central square has stripes, with other colours left and right of it."""
    picture = Image.new("RGB", (96, 32), OUTER[number % 3])
    picture.paste(INNER[number % 3], (32, 0, 64, 32))
    picture.paste("black", (32 + number, 0, 36 + number, 32))
    left = (96 - width) // 2
    content = io.BytesIO()
    picture.crop((left, 0, left + width, 32)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def sets(write_set):
    """Wide images, and the same without what a crop cuts off."""
    wide = write_set("wide", changes={index: {"png": image(index)} for index in range(12)})
    cut = write_set("cut", changes={index: {"png": image(index, 32)} for index in range(12)})
    return wide, cut


@pytest.fixture
def model(tmp_path):
    """Writes a model directory of an untrained network; the preprocessing is of a crop by box."""

    def write(name, record=CROP, **options):
        torch.manual_seed(0)
        config = CONFIGS[name]
        network = config.build()
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.1 * torch.randn(weight.shape))
        made = (
            None
            if record is None
            else Preprocessing(size=getattr(config, "image_size", 16), **record)
        )
        directory = str(tmp_path / f"{name}-model")
        store.save(
            directory, config, network.state_dict(), card="tiny", preprocessing=made, **options
        )
        return directory

    return write


def arrays(url, name="codes"):
    dataset = open_dataset(DataConfig(url=str(url), arrays=(name,)))
    return dataset.batch(range(len(dataset))).array(name)


def test_a_set_is_encoded_as_the_models_training_images_were_prepared(
    mezzotint, refused, model, sets, tmp_path
):
    encoder, (wide, _) = model("dvae"), sets
    words = ("data", "derive", wide, tmp_path / "codes", "--model", encoder)
    assert mezzotint(*words).code == 0
    wanted = np.stack([decode(image(n), ImageConfig(size=16, **CROP), "") for n in range(12)])
    pixels = torch.from_numpy(wanted).movedim(-1, 1) / 127.5 - 1
    codes = store.load(encoder).tokens(pixels)
    assert torch.equal(arrays(tmp_path / "codes"), codes)
    manifest = read_manifest(str(tmp_path / "codes"))
    assert manifest.preprocessing == Preprocessing(size=16, **CROP)
    assert manifest.encoder == store.describe(encoder).digest
    padded = ("data", "derive", wide, tmp_path / "padded", "--model", encoder, "--image-fit", "pad")
    assert refused(*padded) == (
        f"--image-fit is pad, but {encoder} was trained on images of fit crop; leave it out, or "
        "add --force-preprocessing"
    )
    assert mezzotint(*padded, "--force-preprocessing").code == 0
    assert not torch.equal(arrays(tmp_path / "padded"), codes)
    assert read_manifest(str(tmp_path / "padded")).preprocessing.fit == "pad"
    other = refused(*words[:3], tmp_path / "padded", "--model", encoder)
    assert "holds a set of this encoder with images prepared as" in other


def recipe(tmp_path, data, tokens):
    tree = {
        "name": "tiny",
        "steps": 1,
        "batch": 4,
        "model": CONFIGS["prior"].model_dump(mode="json") | {"text_vocab": 40},
        "task": {"kind": "autoregressive"},
        "data": {"arrays": ["codes"], "text": {"tokenizer": str(tokens), "length": 6}, **data},
        "optimizer": {"lr": {"peak": 1e-3}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_model_of_a_derived_set_inherits_the_preprocessing_of_its_images(
    mezzotint, refused, model, sets, tmp_path, tokenizer_directory
):
    encoder, (wide, _) = model("dvae"), sets
    words = ("data", "derive", wide)
    assert mezzotint(*words, tmp_path / "codes", "--model", encoder).code == 0
    forced = ("--image-filter", "lanczos", "--force-preprocessing")
    assert mezzotint(*words, tmp_path / "lanczos", "--model", encoder, *forced).code == 0

    def inputs(name):
        data = {"url": str(tmp_path / name), "encoder": encoder}
        return recipe(tmp_path, data, tokenizer_directory)

    assert open_inputs(load(inputs("codes"))).preprocessing == Preprocessing(size=16, **CROP)
    path = inputs("lanczos")
    message = refused("train", path, "--runs", tmp_path / "runs")
    assert "of filter box" in message
    assert "on filter lanczos; choose" in message
    assert "set data.force_preprocessing" in message
    found = open_inputs(load(path, ["data.force_preprocessing=true"])).preprocessing
    assert found.filter == "lanczos"
    # packed again, and of an earlier version
    assert mezzotint("data", "pack", tmp_path / "codes", tmp_path / "packed").code == 0
    assert read_manifest(str(tmp_path / "packed")).preprocessing.fit == "crop"
    manifest = read_manifest(str(tmp_path / "codes"))
    old = manifest.model_copy(update={"preprocessing": None})
    write_manifest(str(tmp_path / "codes"), old)
    assert encoded_preprocessing(read_manifest(str(tmp_path / "codes"))) == manifest.preprocessing
    assert manifest.fingerprint != old.fingerprint


def test_the_fingerprint_of_a_set_of_images_is_that_of_earlier_versions(write_set):
    manifest = read_manifest(str(write_set()))
    tree = json.loads(manifest.model_dump_json())
    assert tree.pop("preprocessing") is None
    earlier = type(manifest).model_validate(tree)
    assert earlier.fingerprint == manifest.fingerprint


@pytest.mark.processes
def test_a_trained_model_records_its_images_and_the_same_run_with_others_is_refused(
    refused, sets, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    small = ("model.width=16", "model.initial_width=16", "model.vocab=16", "engine.precision=fp32")
    image = ("data.image.fit=crop", "data.image.filter=box", "data.select=[]")
    words = ["train", "recipes/emoji_dvae.yaml", "name=tiny", "steps=1", "batch=4", *small, *image]
    words += [f"data.url={sets[0]}", "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-P", "-m", "launch.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "tiny"
    recorded = store.describe(str(run / "model")).preprocessing
    assert recorded == Preprocessing(size=32, **CROP)
    message = refused(*words, "data.image.fit=pad")
    assert "data.image.fit was 'crop' and is now 'pad'; undo the change" in message


def test_images_of_another_size_than_the_networks_are_refused():
    with pytest.raises(UserError, match=r"data.image.size is 64 and model.image_size is 32"):
        open_inputs(load("recipes/emoji_dvae.yaml", ["data.image.size=64"]))


@pytest.mark.parametrize("command", ["sample", "likelihood", "invert", "complete", "evaluate"])
def test_every_command_prepares_images_as_the_model_was_trained(
    mezzotint, refused, model, sets, tmp_path, monkeypatch, command
):
    words, extra = inputs_of(command, model, tmp_path, monkeypatch)

    def run(url, *more):
        outcome = mezzotint(*words(url), *more)
        assert outcome.code == 0, outcome.err
        return result_of(command, tmp_path, outcome)

    wide, cut = sets
    assert run(wide) == run(cut)
    if command == "evaluate":
        assert evaluated_otherwise(mezzotint, refused, words, wide)
        return
    message = refused(*words(wide), "--image-fit", "pad", *extra)
    assert "--image-fit is pad, but" in message
    assert "of fit crop; leave it out, or add --force-preprocessing" in message
    assert run(wide, "--image-fit", "pad", "--force-preprocessing") != run(cut)


def inputs_of(command, model, tmp_path, monkeypatch):
    """The words of a command for a set of images, and what a refused one needs besides."""
    out = tmp_path / "out.png"
    text = {"tokenizer": Tokenizer.train([f"a {n} b" for n in range(30)], 60), "text_length": 6}

    def picture(url):
        first = open_dataset(DataConfig(url=str(url)))
        (tmp_path / "given.png").write_bytes(first.member(1, "png"))
        return tmp_path / "given.png"

    match command:
        case "sample":
            words = ("sample", model("classes"), "--class", "1", "--solver", "analytic_dpm")
            return lambda url: (*words, "--steps", "3", "--data", url, "--out", out), ()
        case "likelihood":
            where = model("classes")
            return lambda url: ("likelihood", where, url, "--limit", "4", "--steps", "3"), ()
        case "invert":
            words = ("invert", model("classes"))
            more = ("--class", "1", "--steps", "3", "--out", out)
            return lambda url: (*words, picture(url), *more), ()
        case "complete":
            system = DalleSystem(prior=model("prior", **text), dvae=model("dvae"), candidates=1)
            monkeypatch.setattr("launch.sampling.complete.system_of", lambda run, name: system)
            words = ("--out", out, "--number", "1", "--candidates", "1")
            return lambda url: ("complete", "runs/x", picture(url), "a 1", *words), ()
        case _:
            tree = {
                "kind": "reconstruction",
                "name": "tiny",
                "autoencoder": model("dvae"),
                "images": {"split": "halves"},
                "features": None,
            }
            path = tmp_path / "evaluation.yaml"
            path.write_text(yaml.safe_dump(tree))
            words = ("evaluate", path, "--out", tmp_path / "scores")
            return lambda url: (*words, f"images.url={url}"), ()


def result_of(command, tmp_path, outcome):
    """What a command computed."""
    match command:
        case "likelihood":
            return outcome.out.split(" of ")[0]
        case "evaluate":
            tree = json.loads((tmp_path / "scores" / "evaluation.json").read_text())
            return tree["metrics"]
        case _:
            return (tmp_path / "out.png").read_bytes()


def evaluated_otherwise(mezzotint, refused, words, wide):
    """An evaluation states the preprocessing in its protocol, and takes another one only forced."""
    message = refused(*words(wide), "images.filter=lanczos")
    assert message.startswith("images.filter is lanczos, but")
    assert "add images.force_preprocessing: true" in message
    forced = ("images.filter=lanczos", "images.force_preprocessing=true")
    assert mezzotint(*words(wide), *forced).code == 0
    scores = words(wide)[3]
    images = json.loads((scores / "evaluation.json").read_text())["protocol"]["images"]
    return (images["image_size"], images["fit"], images["filter"]) == (16, "crop", "lanczos")


def test_a_model_without_a_record_is_fed_padded_images_and_a_warning_is_given_once(
    model, sets, tmp_path, caplog
):
    preprocessing._warn_of_no_record.cache_clear()
    encoder = model("dvae", None)
    with caplog.at_level(logging.WARNING):
        for name in ("one", "two"):
            encode_set(DataConfig(url=str(sets[0])), encoder, str(tmp_path / name))
    warnings = [each.message for each in caplog.records if "preprocessing" in each.message]
    assert len(warnings) == 1
    assert f"{encoder}: records no preprocessing" in warnings[0]
    assert read_manifest(str(tmp_path / "one")).preprocessing == Preprocessing(size=16)
    stated = DataConfig(url=str(sets[0]), image=ImageConfig(size=16, fit="crop"))
    encode_set(stated, encoder, str(tmp_path / "stated"))
    assert read_manifest(str(tmp_path / "stated")).preprocessing.fit == "crop"


def test_images_are_never_mirrored_or_of_another_size_when_they_are_encoded(model, sets, tmp_path):
    encoder, data = model("dvae"), DataConfig(url=str(sets[0]))
    for change, message in (
        ({"size": 16, "flip": True}, "mirrored in training only"),
        ({"size": 32}, "data.image.size is 32, but .* was trained on images of size 16"),
    ):
        changed = data.model_copy(update={"image": ImageConfig.model_validate(change)})
        with pytest.raises(UserError, match=message):
            encode_set(changed, encoder, str(tmp_path / "no"))
    flipped = model("dvae", {**CROP, "flip": True})
    manifest = encode_set(data, flipped, str(tmp_path / "codes"))
    assert manifest.preprocessing == Preprocessing(size=16, **CROP)


def test_models_of_other_images_work_together_only_when_forced(model):
    text = {"tokenizer": Tokenizer.train([f"a {n} b" for n in range(30)], 60), "text_length": 6}
    pad = {"fit": "pad", "filter": "box"}
    systems = (
        (DalleSystem, {"prior": model("prior", pad, **text), "dvae": model("dvae")}),
        (CascadeSystem, {"base": model("base", pad, **text), "upsampler": model("upsampler")}),
    )
    for kind, parts in systems:
        one = {"candidates": 1} if kind is DalleSystem else {}
        first, second = parts
        wanted = f"system.{first} .* of fit pad and system.{second} .* fit crop"
        with pytest.raises(UserError, match=wanted):
            load_generator(kind(**parts, **one))
        load_generator(kind(**parts, **one, force_preprocessing=True))
