"""Sets of hints, derived on the command line and by a stage of a pipeline."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data_pipeline.config import DataConfig, HintConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.hints.config import Silhouette
from data_pipeline.hints.derive import derive_hints
from data_pipeline.sets.stored_set import read_manifest
from launch.pipeline.config import DeriveStage
from launch.pipeline.stage_types import derive
from launch.progress import Reporter
from mezzotint.common.errors import UserError


def test_the_command_makes_hints_that_training_reads(write_set, mezzotint, tmp_path):
    source, out = write_set(), tmp_path / "colours"
    command = ("data", "derive", source, out, "--hint", "colours", "--size", 8, "--set", "cells=2")
    done = mezzotint(*command)
    assert done.code == 0
    assert "12 hints by colours (cells=2; opencv-python-headless" in done.out
    assert "data.hint.name=colours data.hint.channels=3" in done.out
    manifest = read_manifest(str(out))
    assert manifest.detector.settings == {"cells": 2}
    assert manifest.preprocessing.size == 8
    hint = HintConfig(name="colours", channels=3)
    batch = open_dataset(DataConfig(url=str(out), hint=hint)).batch([0, 11])
    image = open_dataset(DataConfig(url=str(source), image=ImageConfig(size=8))).batch([0, 11])
    np.testing.assert_allclose(batch.hints, image.images / 2 + 0.5, atol=1e-6)
    assert batch.captions == image.captions

    tar = next(out.glob("*.tar"))
    before = tar.stat().st_mtime_ns
    again = json.loads(mezzotint(*command, "--json").out)
    assert again["detector"]["kind"] == "colours"
    assert tar.stat().st_mtime_ns == before
    assert mezzotint(*command[:-1], "cells=4").code == 0
    assert tar.stat().st_mtime_ns != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hint", "edges"], "--size: hints are made at the size of the images that a control"),
        (["--hint", "edges", "--size", 8, "--set", "cells=4"], "edges has no such setting; it has"),
        ([], "give one of --model, which encodes images, --clip, which embeds images and"),
        (["--hint", "edges", "--model", "m"], "give one of --model"),
        (["--text-encoder", "t", "--clip", "c"], "give one of --model"),
        (["--model", "m", "--size", 8], "--size: belongs to --hint; add that, or leave it out"),
        (["--model", "m", "--set", "low=1"], "--set: belongs to --hint"),
        (["--model", "m", "--text-features"], "--text-features: belongs to --clip"),
    ],
)
def test_options_that_do_not_go_together_are_refused(write_set, refused, tmp_path, words, message):
    assert message in refused("data", "derive", write_set(), tmp_path / "out", *words)


def test_a_damaged_image_leaves_no_set(write_set, tmp_path):
    source = write_set(changes={3: {"png": b"no image"}})
    data = DataConfig(url=str(source), image=ImageConfig(size=8))
    with pytest.raises(UserError, match=r"png: not a readable PNG"):
        derive_hints(data, str(tmp_path / "out"), Silhouette())
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_stage_derives_hints(write_set, tmp_path):
    tree = {
        "kind": "derive",
        "data": {"url": str(write_set()), "image": {"size": 8}},
        "hint": {"kind": "edges", "low": 50},
    }
    stage = DeriveStage.model_validate(tree)
    directory = tmp_path / "run"
    directory.mkdir()
    facts = derive(stage, directory, Reporter(None, shows=False))
    assert facts["samples"] == "12"
    assert facts["detector"].startswith("edges (blur=0.0, high=200, low=50;")
    assert "edges.png" in read_manifest(str(directory / "set")).fields
    assert (directory / "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hint": None}, "set one of model, which encodes images, clip, text_encoder and hint"),
        ({"model": "runs/kl/model"}, "set one of model"),
        ({"text_features": True}, "normalization and text_features belong to clip"),
        ({"data": {"url": "x"}}, "set data.image.size"),
        ({"hint": {"kind": "edges", "cells": 4}}, "Extra inputs"),
    ],
)
def test_an_impossible_stage_is_refused(changes, message):
    tree = {"kind": "derive", "data": {"url": "x", "image": {"size": 8}}, "hint": {"kind": "edges"}}
    with pytest.raises(ValidationError, match=message):
        DeriveStage.model_validate(tree | changes)


def test_a_hint_of_another_name_is_another_member(write_set, tmp_path):
    data = DataConfig(url=str(write_set()), image=ImageConfig(size=8))
    out = str(Path(tmp_path, "out"))
    derive_hints(data, out, Silhouette(), name="mask")
    assert "mask.png" in read_manifest(out).fields


def test_the_contact_sheet_shows_hints_beside_their_images(write_set, mezzotint, refused, tmp_path):
    source, out = write_set(), tmp_path / "edges"
    assert mezzotint("data", "derive", source, out, "--hint", "edges", "--size", 16).code == 0
    alone, both = tmp_path / "alone.png", tmp_path / "both.png"
    assert mezzotint("data", "inspect", source, "--sheet", alone).code == 0
    assert mezzotint("data", "inspect", source, "--join", out, "--sheet", both).code == 0
    with Image.open(both) as wide, Image.open(alone) as narrow:
        assert wide.width > 1.5 * narrow.width
    assert mezzotint("data", "inspect", out, "--sheet", tmp_path / "hints.png").code == 0
    assert "--join: shows hints" in refused("data", "inspect", source, "--join", out)
