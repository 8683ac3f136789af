"""The pipeline of latent diffusion, in a seconds-per-stage size, from images to result page."""

import json
from pathlib import Path

import pytest

from evaluation.result import EvaluationResult
from launch.pipeline.config import TrainStage, load_pipeline, stage_recipe
from models import store

PIPELINE = "recipes/pipelines/latents.yaml"
TRAINED = ("first_stage", "clip", "base", "control")
FEW = "{base: [adult, biking, pouting]}"
SELECT = f"[{{split: composition, part: train, where: {FEW}}}]"
SETTINGS = [
    *(f"stages.{name}.set.steps=3" for name in TRAINED),
    *(f"stages.{name}.set.batch=4" for name in TRAINED),
    *(f"stages.{name}.set.log={{every: 1}}" for name in TRAINED),
    *(f"stages.{name}.set.data.select={SELECT}" for name in ("first_stage", "clip")),
    *(f"stages.{name}.data.select={SELECT}" for name in ("latents", "edges")),
    "stages.reconstruction.evaluation.images.limit=4",
    "stages.reconstruction.evaluation.features=null",
    "stages.samples.evaluation.limit={test: 3, train: 2}",
    f"stages.samples.evaluation.reference.where={FEW}",
    "stages.samples.evaluation.retrieval_choices=4",
    "stages.samples.evaluation.system.sampling.steps=2",
    "stages.control_samples.evaluation.limit=2",
    "stages.control_samples.evaluation.system.sampling.steps=2",
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
    control = recipes["control"].model
    assert control.base == base
    assert control.hint_size == first.image_size


@pytest.fixture(scope="module")
def root(tmp_path_factory, run_stages) -> Path:
    """A run directory in which every stage has run."""
    return run_stages(PIPELINE, tmp_path_factory.mktemp("latents") / "latents", *SETTINGS)


@pytest.mark.processes
def test_the_denoiser_is_trained_on_latents_of_the_trained_first_stage(root):
    manifest = json.loads((root / "latents" / "set" / "manifest.json").read_text())
    assert manifest["encoder"] == store.describe(str(root / "first_stage" / "model")).digest
    for name in TRAINED:
        assert json.loads((root / name / "summary.json").read_text())["steps"] == 3
    clip = store.describe(str(root / "clip" / "model")).digest
    assert store.describe(str(root / "base" / "model")).text_encoder.digest == clip


@pytest.mark.processes
def test_the_control_is_trained_for_the_base_that_stays_as_it_is(root):
    control = store.describe(str(root / "control" / "model"))
    assert control.base.digest == store.describe(str(root / "base" / "model")).digest
    assert control.hint.detector.kind == "edges"


@pytest.mark.processes
def test_the_system_generates_from_captions_seen_and_never_seen(root):
    tree = json.loads((root / "samples" / "evaluation.json").read_text())
    assert tree["protocol"]["system"]["kind"] == "latent"
    assert tree["protocol"]["images"] == {"composition": 3, "train": 2}


@pytest.mark.processes
def test_the_page_shows_reconstructions_and_samples(root):
    page = (root / "index.html").read_text()
    for words in ("Reconstructions", "first_stage", "Latent diffusion"):
        assert words in page


@pytest.mark.processes
def test_samples_are_compared_with_their_hints(root):
    result = EvaluationResult.read(root / "control_samples" / "evaluation.json")
    assert result.metrics["edge_F1"]["controlled"].n == 2
    assert result.metrics["changed_at_scale_0"] == {"of 6": 0.0}
    assert (root / "control_samples" / "grid_control.png").exists()
    assert 'id="controls"' in (root / "index.html").read_text()
