"""`invert` and `likelihood`, and `sample --from-noise`."""

import json

import pytest
import torch
from PIL import Image

from data_pipeline.text.tokenizer import Tokenizer
from launch.sampling.noise_file import NoiseFile, read_noise
from mezzotint.common.errors import UserError
from models import store
from models.diffusion.text_diffusion import TextDiffusionConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory of an untrained model of captions, which generates grey squares."""
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    config = TextDiffusionConfig(
        image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=40, text_length=6
    )
    directory = tmp_path_factory.mktemp("captioned") / "model"
    torch.manual_seed(0)
    store.save(
        str(directory),
        config,
        config.build().state_dict(),
        card="tiny",
        tokenizer=Tokenizer.train(words, 40),
        text_length=6,
    )
    return directory


@pytest.fixture
def images(tmp_path, png):
    paths = []
    for colour in ("red", "gray"):
        path = tmp_path / f"{colour}.png"
        path.write_bytes(png(colour))
        paths.append(path)
    return paths


def test_images_are_inverted_reported_and_sampled_again(mezzotint, model, images, tmp_path):
    out = tmp_path / "looked" / "at.png"
    words = ("invert", model, *images, "--caption", "man cook", "--out", out)
    outcome = mezzotint(*words, "--steps", "20,5", "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["images"] == ["red.png", "gray.png"]
    assert [run["steps"] for run in report["runs"]] == [5, 20]
    assert [run["nfe"] for run in report["runs"]] == [10, 40]
    assert all(len(run["psnr"]) == 2 for run in report["runs"])
    assert {"mean", "std", "kurtosis", "distance"} <= report["runs"][0]["noise"].keys()
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 96
    kept = read_noise(out.with_suffix(".safetensors"))
    assert (kept.steps, kept.times) == (20, "log_snr")
    assert kept.captions == ("man cook", "man cook")
    assert kept.noise.shape == (2, 3, 8, 8)
    sampled = mezzotint(
        "sample", model, "woman cook", "--from-noise", out.with_suffix(".safetensors"), "--json",
        "--out", tmp_path / "again.png",
    )  # fmt: skip
    assert sampled.code == 0, sampled.err
    again = json.loads(sampled.out)
    assert again["number"] == 2
    assert again["system"]["sampling"]["steps"] == 20
    assert again["system"]["sampling"]["times"]["kind"] == "log_snr"
    assert again["cells"][0]["images"] == "from given noise"
    assert "PSNR" in mezzotint(*words, "--steps", "4").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", "ten"), "--steps ten: looks like 10,25,50"),
        (("--times", "cubic"), "there is no 'cubic'"),
        (("--caption", "a", "--caption", "b", "--caption", "c"), "3 given for 2 images"),
        (("--noise", "x.pt"), "--noise x.pt: ends with .safetensors"),
        (("--class", "0"), "is not conditioned on classes"),
    ],
)
def test_what_cannot_be_inverted_is_refused(refused, model, images, words, message, tmp_path):
    report = refused("invert", model, *images, *words, "--out", tmp_path / "no.png")
    assert message in report


def test_noise_of_other_making_is_refused(tmp_path, refused, model):
    path = tmp_path / "noise.safetensors"
    made = NoiseFile(torch.zeros(1, 3, 8, 8), "f" * 64, 5, "log_snr", ("",), ())
    made.save(path)
    message = refused("sample", model, "man", "--from-noise", path, "--out", tmp_path / "no.png")
    assert "is noise of another model" in message
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="is not noise that"):
        read_noise(path)


def test_the_likelihood_comes_with_its_interval_and_protocol(mezzotint, model, write_set):
    words = ("likelihood", model, write_set(), "--limit", "4", "--steps", "4")
    outcome = mezzotint(*words, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    bits = report["bits_per_dimension"]
    assert bits["n"] == 4
    assert bits["low"] <= bits["value"] <= bits["high"]
    assert report["protocol"]["dequantisation"] == "uniform over 256 levels"
    assert mezzotint(*words, "--json").out == outcome.out
    assert "bits per dimension" in mezzotint(*words).out


@pytest.mark.processes
def test_any_number_of_processes_inverts_to_the_same_noise(mezzotint, model, png, tmp_path):
    images = []
    for index in range(20):
        images.append(tmp_path / f"{index}.png")
        images[-1].write_bytes(png(f"hsl({18 * index}, 60%, 50%)"))
    found = []
    for count in (1, 2):
        out = tmp_path / "out" / f"{count}.png"
        words = ("--steps", "3", "--device", "cpu", "--processes", count, "--out", out)
        outcome = mezzotint("invert", model, *images, *words)
        assert outcome.code == 0, outcome.err
        found.append((out.read_bytes(), out.with_suffix(".safetensors").read_bytes()))
    assert found[0] == found[1]


@pytest.mark.processes
def test_any_number_of_processes_finds_the_same_likelihood(mezzotint, model, write_set):
    words = ("likelihood", model, write_set(), "--limit", "10", "--steps", "3", "--batch", "4")
    one, two = (
        mezzotint(*words, "--json", "--device", "cpu", "--processes", count) for count in (1, 2)
    )
    assert one.code == 0, one.err
    assert one.out == two.out
