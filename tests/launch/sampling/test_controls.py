"""`sample --control`: hints from files or made by the recorded detector, and what is refused."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from saved_network import saved

from data_pipeline.config import ImageConfig
from data_pipeline.hints.config import Edges, Silhouette
from launch.sampling import controls
from launch.sampling.controls import interval
from launch.sampling.sample_report import shown_hint
from mezzotint.common.errors import UserError
from mezzotint.common.hint import HintRecord
from models import store
from models.base_record import BaseRecord
from models.diffusion.control.network import ControlConfig
from models.diffusion.unet.network import UNetConfig

UNET = UNetConfig(
    image_size=8, channels=8, multipliers=(1, 2), depth=1, attention=(), head_width=8, groups=4,
    classes=3, null_class=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base, a control of it on edges and one on a user's own hints; a hint and a photograph."""
    root = tmp_path_factory.mktemp("controls")
    base = saved(root / "base", UNET)
    record = BaseRecord(model=base, digest=store.describe(base).digest)
    for name, detector in (("edges", Silhouette(tolerance=8).record), ("own", None)):
        hint = HintRecord(name=name, channels=1, detector=detector)
        saved(root / name, ControlConfig(base=UNET, hint={"channels": 1}), base=record, hint=hint)
    pixels = np.full((8, 8), 0, np.uint8)
    pixels[2:6, 2:6] = 255
    Image.fromarray(pixels).save(root / "hint.png")
    Image.fromarray(pixels).convert("RGB").save(root / "photo.png")
    Image.new("RGB", (8, 8), "red").save(root / "colour.png")
    Image.new("L", (9, 9)).save(root / "large.png")
    (root / "text.png").write_text("no image")
    return root


def sampled(mezzotint, home, tmp_path, run, *words):
    out = tmp_path / "out.png"
    command = ("sample", home / run, "--class", 1, "--number", 1, "--steps", 2, "--out", out)
    done = mezzotint(*command, "--json", *words)
    assert done.code == 0, done
    return out.read_bytes(), json.loads(done.out)


def test_a_control_is_sampled_with_its_base_and_shown_beside_its_hint(mezzotint, home, tmp_path):
    grid, tree = sampled(mezzotint, home, tmp_path, "edges", "--control", home / "hint.png")
    assert tree["system"]["model"] == str(home / "base")
    assert [each["scale"] for each in tree["system"]["controls"]] == [1.0]
    words = ("--control", home / "photo.png", "--detect")
    detected, _ = sampled(mezzotint, home, tmp_path, "edges", *words)
    assert detected == grid  # the silhouette of the photograph is the hint
    both = ("--control", home / "hint.png", "--control", home / "hint.png")
    several = ("--control-model", home / "own", "--control-scale", 0.5, "--guess-mode", "power")
    _, tree = sampled(
        mezzotint, home, tmp_path, "edges", *both, *several, "--control-interval", "0.2,0.9"
    )
    for each in tree["system"]["controls"]:
        assert (each["scale"], each["guess"], each["interval"]) == (0.5, "power", [0.2, 0.9])


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("edges", [], "a control needs a hint; give --control FILE, or sample its base"),
        ("edges", ["--control-scale", 1], "--control: is missing; give a hint for each control"),
        ("base", ["--control", "hint.png"], "is a base without a control; add --control-model"),
        ("edges", ["--control", "hint.png", "--control", "hint.png"], "2 hints for 1 controls"),
        ("edges", ["--control", "colour.png"], "the hint has 3 channels, but 1 are needed"),
        ("edges", ["--control", "large.png"], "the hint is 9 x 9 pixels, but the images are 8 x 8"),
        ("edges", ["--control", "text.png"], "text.png: not a readable PNG, JPEG or WebP image"),
        ("edges", ["--control", "none.png"], "none.png: cannot be read"),
        ("own", ["--control", "photo.png", "--detect"], "no detector makes one from an image"),
        ("edges", ["--control", "hint.png", "--control-interval", "1"], "give two times, LOW,HIGH"),
        (
            "edges",
            ["--control", "hint.png", "--control-scale", 1, "--control-scale", 2],
            "--control-scale: is given 2 times for 1 controls",
        ),
        ("edges", ["--control", "hint.png", "--control-model", "base"], "1 hints for 2 controls"),
    ],
)
def test_what_does_not_fit_is_refused(refused, home, run, words, message, tmp_path):
    given = [home / each if str(each).endswith((".png", "base")) else each for each in words]
    options = ("--class", 1, "--out", tmp_path / "out.png")
    assert message in refused("sample", home / run, *options, *given)


def test_intervals_are_two_times():
    assert interval("0.25,1") == (0.25, 1.0)
    for wrong in ("1,0", "a,b", "0,1,1", "-1,1"):
        with pytest.raises(UserError, match="between 0"):
            interval(wrong)


def test_hints_are_shown_in_grey_or_colour():
    grey = shown_hint(torch.tensor([[[0.0, 1.0]]], device="cpu"))
    assert grey.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert shown_hint(torch.ones(5, 2, 2, device="cpu")).shape == (2, 2, 3)
    assert Edges().channels == 1


def test_another_version_of_the_detectors_library_is_warned_of_once(caplog):
    controls._warn_of_another_version.cache_clear()
    here = Silhouette(tolerance=8).record
    older = HintRecord(name="h", channels=1, detector=here.model_copy(update={"version": "4.5.0"}))
    content, image = io.BytesIO(), ImageConfig(size=8)
    Image.new("RGB", (8, 8), "red").save(content, "PNG")
    for record in (HintRecord(name="h", channels=1, detector=here), older, older):
        controls.detect_hint(content.getvalue(), "photo.png", record, image)
    (warning,) = [each.message for each in caplog.records]
    assert f"{here.library} 4.5.0, and this is {here.library} {here.version}" in warning
