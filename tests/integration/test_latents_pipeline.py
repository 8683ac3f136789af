"""The pipeline of latent diffusion, in a seconds-per-stage size, from images to result page."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.pipeline.config import TrainStage, load_pipeline, stage_recipe
from models import store

PIPELINE = "recipes/pipelines/latents.yaml"
TRAINED = ("first_stage", "clip", "base")
FEW = "{base: [adult, biking, pouting]}"
SELECT = f"[{{split: composition, part: train, where: {FEW}}}]"
SETTINGS = [
    *(f"stages.{name}.set.steps=3" for name in TRAINED),
    *(f"stages.{name}.set.batch=4" for name in TRAINED),
    *(f"stages.{name}.set.log={{every: 1}}" for name in TRAINED),
    *(f"stages.{name}.set.data.select={SELECT}" for name in ("first_stage", "clip")),
    f"stages.latents.data.select={SELECT}",
    "stages.reconstruction.evaluation.images.limit=4",
    "stages.reconstruction.evaluation.features=null",
]


def test_the_denoiser_has_the_shape_of_the_latents_and_of_the_captions_features():
    stages = load_pipeline(PIPELINE).stages
    recipes = {
        name: stage_recipe(stage) for name, stage in stages.items() if isinstance(stage, TrainStage)
    }
    first, base, clip = (recipes[name].model for name in ("first_stage", "base", "clip"))
    side = first.image_size // first.pyramid.stride
    assert (base.image_channels, base.image_size) == (first.channels, side) == (4, 16)
    assert base.features.width == clip.text_width


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run directory in which every stage has run."""
    path = tmp_path_factory.mktemp("latents") / "latents"
    script = Path(__file__).with_name("stages.py")
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, str(script), PIPELINE, str(path), *SETTINGS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return path


@pytest.mark.processes
def test_the_denoiser_is_trained_on_latents_of_the_trained_first_stage(root):
    manifest = json.loads((root / "latents" / "set" / "manifest.json").read_text())
    assert manifest["encoder"] == store.describe(str(root / "first_stage" / "model")).digest
    for name in TRAINED:
        assert json.loads((root / name / "summary.json").read_text())["steps"] == 3
    clip = store.describe(str(root / "clip" / "model")).digest
    assert store.describe(str(root / "base" / "model")).text_encoder.digest == clip


@pytest.mark.processes
def test_the_page_shows_the_first_stage_reconstructions(root):
    page = (root / "index.html").read_text()
    assert "Reconstructions" in page
    assert "first_stage" in page
