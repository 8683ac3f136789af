"""`mezzotint edit imagic`: its strip, its report, and what it refuses."""

import json

import pytest
import yaml
from PIL import Image
from tiny_run import write_run

from launch.errors import after_interruption

FEW = ("--embedding-steps", 2, "--steps", 2, "--upsampler-steps", 1, "--train-batch", 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pipeline's run of untrained networks, whose cascade is evaluated by a CLIP model."""
    root = write_run(tmp_path_factory.mktemp("run"))
    tree = yaml.safe_load((root / "pipeline.yaml").read_text())
    tree["stages"]["cascade"]["evaluation"]["clip"] = "${clip}/model"
    (root / "pipeline.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return root


@pytest.fixture
def image(tmp_path, png):
    path = tmp_path / "red.png"
    path.write_bytes(png("red"))
    return path


def test_an_edit_is_written_scored_and_sampled_again(mezzotint, run, image, tmp_path):
    out = tmp_path / "looked" / "at.png"
    words = ("edit", "imagic", run, image, "man cook", "--system", "cascade", "--out", out, *FEW)
    outcome = mezzotint(*words, "--etas", "0,0.5,1", "--number", 2, "--json", "--rank", 1)
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert [each["eta"] for each in report["etas"]] == [0.0, 0.5, 1.0]
    assert all(each["clip"] is not None and each["distance"] > 0 for each in report["etas"])
    assert report["best"] in (0.0, 0.5, 1.0)
    assert report["source"]["distance"] == 0
    assert report["training"]["rank"] == 1
    assert report["training"]["embedding"]["steps"] == 2
    assert set(report["digests"]["after"]) == {"network", "upsampler_0"}
    assert list(report["losses"]) == ["target embedding", "optimised embedding", "fine-tuned"]
    with Image.open(out) as strip:
        assert strip.width > 5 * 64
    assert (tmp_path / "looked" / "at.imagic" / "network.safetensors").is_file()
    again = mezzotint(*words, "--etas", "0.5", "--rank", 1)
    assert again.code == 0, again.err
    assert "best" in again.out
    assert "as before the edit" in again.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--etas", "a,b"), "--etas a,b: looks like 0,0.5,0.8,1"),
        (("--etas", "nan"), "looks like"),
        (("--system", "plain"), "edit imagic: a dalle has no diffusion model of captions"),
        (("--set", "level=3"), "level"),
        (("--clip", "nowhere"), "nowhere"),
        (("--vgg", "nowhere.pth"), "nowhere.pth"),
        (("--rank", "64"), "rank 64: no layer"),
    ],
)
def test_what_cannot_be_edited_is_refused(refused, run, image, words, message, tmp_path):
    given = ("edit", "imagic", run, image, "man cook", *words, "--out", tmp_path / "no.png")
    assert message in refused(*given)


def test_a_missing_image_and_a_model_without_captions_are_refused(refused, run, image, tmp_path):
    out = ("--out", tmp_path / "no.png")
    message = refused("edit", "imagic", run, tmp_path / "no.jpg", "man cook", *out)
    assert "no.jpg: no such image" in message
    message = refused("edit", "imagic", run / "classes", image, "man cook", *out)
    assert "is not conditioned on captions" in message


def test_an_interruption_says_that_the_same_command_goes_on():
    assert "goes on from what is kept" in after_interruption(["edit", "imagic", "run"])
