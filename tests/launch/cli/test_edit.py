"""`mezzotint edit`: strips of real image files."""

import json

import pytest
import torch
from PIL import Image
from unclip_home import DECODER, networks, write_system

from launch.edit.strips import Interpolation, parse_numbers
from mezzotint.common.errors import UserError
from models import store

SMALL = ["--steps", 4, "--device", "cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    config = write_system(root)
    for name, size in (("one", (20, 16)), ("two", (16, 16)), ("small", (7, 7))):
        image = Image.linear_gradient("L").resize(size)
        image.convert("RGB").save(root / f"{name}.png")
    run = root / "run"
    run.mkdir()
    system = config.model_dump(mode="json")
    cascade = {"kind": "cascade", "base": "b", "upsampler": "u"}
    stages = {
        "other": {"type": "evaluate", "evaluation": {"system": cascade}},
        "unclip": {"type": "evaluate", "evaluation": {"system": system}},
    }
    (run / "pipeline.yaml").write_text(json.dumps({"name": "run", "stages": stages}))
    return root


def test_variations_of_a_pipelines_system_are_a_strip(mezzotint, home, tmp_path):
    out = tmp_path / "strip.png"
    command = ["edit", "variations", home / "run", home / "one.png", home / "two.png"]
    outcome = mezzotint(*command, "--etas", "0,1", "--out", out, *SMALL, "--json")
    assert outcome.code == 0, outcome
    report = json.loads(outcome.out)
    assert report["system"] == "unclip"
    assert report["images"] == ["one.png", "two.png"]
    assert report["columns"] == {"name": "eta", "values": [0.0, 1.0]}
    shape = torch.tensor(report["cosines"]["source"]).shape
    assert shape == (2, 2, 2)
    assert len(report["psnr"]) == 2
    with Image.open(out) as image:
        assert image.width > 100


def test_a_decoder_by_itself_interpolates(mezzotint, home, tmp_path):
    out = tmp_path / "strip.png"
    command = ["edit", "interpolate", home / "decoder", home / "one.png", home / "two.png"]
    outcome = mezzotint(*command, "--between", 1, "--no-noise", "--out", out, *SMALL)
    assert outcome.code == 0, outcome
    assert "PSNR of the inverted images, generated again" in outcome.out
    assert out.is_file()


def test_a_text_difference_is_a_strip_with_the_cosines_of_both_captions(mezzotint, home, tmp_path):
    command = ["edit", "textdiff", home / "decoder", home / "one.png"]
    command += ["--from", "man pilot", "--to", "woman cook", "--thetas", "0,0.5"]
    outcome = mezzotint(*command, "--out", tmp_path / "strip.png", *SMALL, "--json")
    assert outcome.code == 0, outcome
    report = json.loads(outcome.out)
    assert report["captions"] == ["man pilot", "woman cook"]
    assert report["cosines"].keys() == {"from", "to"}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("run", "small.png"), "small.png: has 7 x 7 pixels, and the decoder generates 8 x 8"),
        (("run", "none.png"), "none.png: no such image"),
        (("run", "one.png", "--system", "other"), "has no decoder of image embeddings"),
        (("decoder", "one.png", "--system", "unclip"), "is no pipeline's run directory"),
        (("prior", "one.png"), "holds a diffusion_prior that is not conditioned on CLIP"),
        (("upsampler", "one.png"), "holds a unet that is not conditioned on CLIP"),
        (("decoder", "one.png", "--etas", "a"), "--etas a: looks like 0,0.5,1"),
        (("decoder", "one.png", "--etas", "-1"), "--etas: give numbers of at least 0"),
        (("decoder", "one.png", "--caption", "a", "--caption", "b"), "--caption: 2 given for 1"),
        (("decoder", "one.png", "--clip", "decoder"), "holds a unet, not a CLIP model"),
    ],
)
def test_an_edit_that_cannot_be_is_one_message_and_no_file(
    mezzotint, home, tmp_path, command, message
):
    paths = {path.name: path for path in (*home.iterdir(), home / "none.png")}
    words = [paths.get(word, word) for word in command]
    out = tmp_path / "strip.png"
    outcome = mezzotint("edit", "variations", *words, "--out", out, *SMALL)
    assert outcome.code == 2
    assert message in outcome.err
    assert not out.exists()


def test_a_decoder_samples_captions_with_a_given_prior(mezzotint, home, tmp_path):
    command = ["sample", home / "decoder", "woman pilot", "--steps", 2, "--number", 1, "--json"]
    command += ["--out", tmp_path / "out.png", "--device", "cpu"]
    outcome = mezzotint(*command)
    assert outcome.code == 2
    assert "system.prior: the system has no prior" in outcome.err
    chosen = [f"prior={home / 'prior'}", "prior-steps=2", "prior-guidance=1", "best-of=3"]
    outcome = mezzotint(*command, *(word for each in chosen for word in ("--set", each)))
    assert outcome.code == 0, outcome
    # three samples of an unguided prior, then the guided decoder
    assert json.loads(outcome.out)["cells"][0]["nfe"]["network"] == 3 * 2 + 2 * 2


def test_an_interpolation_is_of_two_images():
    with pytest.raises(UserError, match="takes two images, got 1"):
        Interpolation(3).check(1)


def test_a_decoder_without_the_record_of_its_embeddings_is_refused(mezzotint, home, tmp_path):
    where = tmp_path / "decoder"
    text = store.describe(str(home / "decoder")).text_encoder
    weights = networks(DECODER).state_dict()
    store.save(str(where), DECODER, weights, card="", text_encoder=text)
    outcome = mezzotint("edit", "variations", where, home / "one.png")
    assert outcome.code == 2
    assert "is not conditioned on CLIP embeddings" in outcome.err


def test_numbers_are_separated_by_commas():
    assert parse_numbers("--etas", "0,0.5,1") == (0.0, 0.5, 1.0)
