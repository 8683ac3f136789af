"""The showcase's own pipeline, in a seconds-per-stage size, from data to result page."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from launch.pipeline.config import TrainStage, load_pipeline, stage_recipe
from models import store
from models.autoencoders.levels import level_shapes

PIPELINE = "recipes/pipelines/autoencoders.yaml"
FIRST_STAGES = ("vqvae2", "vqgan", "kl")
PRIORS = ("vqvae2_top", "vqvae2_bottom", "vqgan_prior")
FEW = "{base: [adult, biking, pouting]}"
SELECT = f"[{{split: composition, part: train, where: {FEW}}}]"
SAMPLES = ("vqvae2_samples", "vqgan_samples")
SETTINGS = [
    *(f"stages.{name}.set.steps=3" for name in (*FIRST_STAGES, *PRIORS, "clip")),
    *(f"stages.{name}.set.batch=4" for name in (*FIRST_STAGES, *PRIORS, "clip")),
    *(f"stages.{name}.set.log={{every: 1}}" for name in (*FIRST_STAGES, *PRIORS, "clip")),
    *(f"stages.{name}.set.model.layers=1" for name in PRIORS),
    *(f"stages.{name}.set.data.select={SELECT}" for name in (*FIRST_STAGES, "clip")),
    *(f"stages.{name}.set.task.start_step=1" for name in ("vqgan", "kl")),
    *(f"stages.{name}_codes.data.select={SELECT}" for name in ("vqvae2", "vqgan")),
    *(f"stages.{name}_reconstruction.evaluation.images.limit=4" for name in FIRST_STAGES),
    *(f"stages.{name}_reconstruction.evaluation.features=null" for name in ("vqvae2", "kl")),
    *(f"stages.{name}.evaluation.limit={{test: 3, train: 2}}" for name in SAMPLES),
    *(f"stages.{name}.evaluation.system.candidates=2" for name in SAMPLES),
    *(f"stages.{name}.evaluation.reference.where={FEW}" for name in SAMPLES),
    *(f"stages.{name}.evaluation.retrieval_choices=4" for name in SAMPLES),
]


def test_the_priors_have_the_shapes_that_their_autoencoders_codes_ask_for():
    stages = load_pipeline(PIPELINE).stages
    recipes = {
        name: stage_recipe(stage) for name, stage in stages.items() if isinstance(stage, TrainStage)
    }
    text = recipes["vqvae2_top"].data.text
    shapes = level_shapes(recipes["vqvae2"].model, 400, text.length)
    for level, shape in shapes.items():
        prior = recipes[f"vqvae2_{level}"].model
        assert {key: getattr(prior, key) for key in asdict(shape)} == asdict(shape)
    vqgan, prior = recipes["vqgan"].model, recipes["vqgan_prior"].model
    side = vqgan.image_size // vqgan.pyramid.stride
    assert (prior.image_vocab, prior.grid) == (vqgan.bottleneck.codes, (side, side))


@pytest.fixture(scope="module")
def root(tmp_path_factory, run_stages) -> Path:
    """A run directory in which every stage has run."""
    return run_stages(PIPELINE, tmp_path_factory.mktemp("showcase") / "autoencoders", *SETTINGS)


@pytest.mark.processes
def test_codes_are_derived_from_the_trained_autoencoders_and_priors_trained_on_them(root):
    for name, arrays in (("vqvae2", {"top.npy", "bottom.npy"}), ("vqgan", {"codes.npy"})):
        manifest = json.loads((root / f"{name}_codes" / "set" / "manifest.json").read_text())
        assert manifest["encoder"] == store.describe(str(root / name / "model")).digest
        assert arrays <= set(manifest["fields"])
    for name in (*FIRST_STAGES, *PRIORS):
        assert json.loads((root / name / "summary.json").read_text())["steps"] == 3
        assert store.describe(str(root / name / "model")).config.kind


@pytest.mark.processes
def test_every_autoencoder_is_evaluated_on_held_out_images(root):
    for name in FIRST_STAGES:
        tree = json.loads((root / f"{name}_reconstruction" / "evaluation.json").read_text())
        assert tree["protocol"]["images"]["part"] == "test"
        metrics = tree["metrics"]
        assert metrics["psnr"]["test"]["n"] == metrics["ssim"]["test"]["n"] == 4
        assert ("reconstruction_fd_efficientnet_lite0" in metrics) == (name == "vqgan")
        assert metrics["bits_per_pixel"]["total"] > 0
    tree = json.loads((root / "vqvae2_reconstruction" / "evaluation.json").read_text())
    assert tree["metrics"]["code_positions"] == {"top": 16, "bottom": 64}


@pytest.mark.processes
def test_both_kinds_of_priors_generate_from_captions_seen_and_never_seen(root):
    for name, decoder in (("vqvae2", "hierarchy"), ("vqgan", "dalle")):
        tree = json.loads((root / f"{name}_samples" / "evaluation.json").read_text())
        assert tree["protocol"]["system"]["kind"] == decoder
        assert tree["protocol"]["images"] == {"composition": 3, "train": 2}
        assert list(tree["metrics"]["exact_match_best_of_n"]) == ["1", "2"]
        assert (root / f"{name}_samples" / "grid_held_out.png").is_file()


@pytest.mark.processes
def test_the_page_shows_reconstructions_and_samples(root):
    page = (root / "index.html").read_text()
    for words in ("Reconstructions", "VQ-VAE-2 + a prior per level", "Transformer prior + VQ-GAN"):
        assert words in page
    assert "is missing" not in page
