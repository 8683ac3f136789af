"""`sample` with single diffusion models: classes, solvers, sweeps, trajectories, settings."""

import json

import pytest
import torch
from PIL import Image

from data_pipeline.text.tokenizer import Tokenizer
from launch.sampling.overrides import parse_overrides, parse_sweep, with_overrides
from mezzotint.common.errors import UserError
from mezzotint.inference.config import (
    CascadeSystem,
    DalleSystem,
    DiffusionSystem,
    UnclipSystem,
)
from mezzotint.inference.model_lookup import find_model
from models import store
from models.diffusion.classifier import NoisyClassifierConfig
from models.diffusion.process import ProcessConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig

SMALL = {"image_size": 8, "channels": 8, "multipliers": (1, 2), "depth": 1, "groups": 4}


def saved(directory, config, **reads):
    """A model directory with an untrained network that is not blank."""
    torch.manual_seed(0)
    network = config.build()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape))
    store.save(str(directory), config, network.state_dict(), card="tiny", **reads)
    return directory


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """A model directory of a model of captions."""
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    config = TextDiffusionConfig(
        image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=40, text_length=6
    )
    directory = tmp_path_factory.mktemp("captioned") / "model"
    return saved(directory, config, tokenizer=Tokenizer.train(words, 40), text_length=6)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A training run of a model of three classes with names."""
    run = tmp_path_factory.mktemp("run") / "shapes"
    config = UNetConfig(
        **SMALL, attention=(), head_width=4, classes=3, null_class=True, process=ProcessConfig()
    )
    run.mkdir()
    saved(run / "model", config)
    (run / "recipe.yaml").write_text(
        "data:\n  url: x\n  label: {attribute: shape, values: [disc, square, star]}\n"
    )
    return run


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A model directory of a noisy classifier of the three classes."""
    config = NoisyClassifierConfig(**SMALL, attention=(), head_width=8, classes=3)
    return saved(tmp_path_factory.mktemp("classifier") / "model", config)


@pytest.fixture
def sample(mezzotint, tmp_path):
    """Runs the command quickly; returns what its JSON says."""

    def command(*words):
        outcome = mezzotint(
            "sample", *words, "--steps", "3", "--number", "2", "--json",
            "--out", tmp_path / "out.png",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    return command


def test_classes_are_generated_by_name_and_network_evaluations_are_reported(
    sample, classes, tmp_path
):
    report = sample(classes, "--class", "star", "--class", "0", "--guidance", "2")
    assert [prompt["label"] for prompt in report["prompts"]] == [2, 0]
    assert [prompt["title"] for prompt in report["prompts"]] == ["star", "disc"]
    (cell,) = report["cells"]
    assert cell["nfe"] == {"network": 6, "classifier": 0}
    assert report["system"]["sampling"]["guidance"] == 2
    first = (tmp_path / "out.png").read_bytes()
    sample(classes, "--class", "star", "--class", "0", "--guidance", "2")
    assert (tmp_path / "out.png").read_bytes() == first
    sample(classes, "--class", "star", "--class", "0", "--guidance", "2", "--seed", "9")
    assert (tmp_path / "out.png").read_bytes() != first


def test_a_classifier_guides_to_the_class_and_its_evaluations_are_reported(
    sample, classes, classifier, captioned, refused, tmp_path
):
    words = (classes, "--class", "star", "--classifier", classifier)
    report = sample(*words, "--classifier-scale", "3")
    assert report["system"]["sampling"]["classifier_scale"] == 3
    assert report["cells"][0]["nfe"] == {"network": 3, "classifier": 3}
    guided = (tmp_path / "out.png").read_bytes()
    sample(classes, "--class", "star")
    assert (tmp_path / "out.png").read_bytes() != guided
    out = ("--out", tmp_path / "no.png")
    message = refused("sample", classes, "--class", "star", "--classifier", classes, *out)
    assert "system.classifier: " in message
    assert "holds a unet, not a NoisyClassifier" in message
    message = refused("sample", captioned, "man", "--classifier", classifier, *out)
    assert "classifier_scale needs a noisy classifier and a class" in message


def test_a_model_generates_without_conditions(sample, classes, captioned):
    assert sample(classes)["prompts"][0]["title"] == "unconditional"
    assert sample(captioned)["prompts"][0]["text"] is None


def test_a_sweep_is_one_grid_whose_cells_share_their_seeds(sample, captioned, tmp_path):
    report = sample(captioned, "man cook", "--sweep", "guidance=1,2 solver=ddim,heun,ddpm")
    assert [cell["settings"] for cell in report["cells"]][:4] == [
        {"guidance": 1, "solver": "ddim"},
        {"guidance": 1, "solver": "heun"},
        {"guidance": 1, "solver": "ddpm"},
        {"guidance": 2, "solver": "ddim"},
    ]
    assert [cell["nfe"]["network"] for cell in report["cells"]] == [3, 6, 3, 6, 12, 6]
    with Image.open(tmp_path / "out.png") as image:
        assert image.width > 3 * 2 * 96
    # equal values give equal images: the same noise starts every cell
    same = sample(captioned, "man cook", "woman pilot", "--sweep", "guidance=2,2")
    assert len(same["cells"]) == 2
    with Image.open(tmp_path / "out.png") as image:
        colours = image.convert("RGB")
        left = colours.width - 2 * 99 - 16 - 12 - 2 * 99
        assert colours.height > 2 * 96
        assert left > 0


def test_a_trajectory_shows_the_steps_from_noise(sample, captioned, tmp_path):
    path = tmp_path / "steps" / "steps.gif"
    report = sample(captioned, "man cook", "woman pilot", "--trajectory", path)
    assert report["trajectory"] == str(path)
    with Image.open(path) as animation:
        assert animation.n_frames == 4
    sample(captioned, "man cook", "--trajectory", path.with_suffix(".png"))
    with Image.open(path.with_suffix(".png")) as strip:
        assert strip.width > 4 * 96


def test_analytic_variances_are_estimated_on_a_set(sample, captioned, write_set, refused, tmp_path):
    words = ("man cook", "--solver", "analytic_dpm")
    assert sample(captioned, *words, "--data", write_set())["cells"][0]["nfe"]["network"] == 3
    message = refused("sample", captioned, *words, "--out", tmp_path / "no.png")
    assert message.startswith("--solver analytic_dpm: its variances are estimated on images")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--solver", "rk4"), "--solver rk4: there is no 'rk4'; choose 'ddpm', 'ddim'"),
        (("--set", "times=trailing"), "times of kind trailing count discrete steps"),
        (("--set", "colour=3"), "--set colour: a system of kind diffusion has no such setting"),
        (("--set", "colour"), "--set colour: looks like times=karras"),
        (
            ("--sweep", "guidance"),
            "--sweep guidance: expected KEY=VALUE,VALUE,... as in guidance=1,2,4",
        ),
        (("--sweep", "steps=0,5"), "--sweep steps 0: Input should be greater than 0"),
        (("--sweep", "steps=1 guidance=1 eta=0"), "two settings at most"),
        (("--sweep", "steps=1,2", "--trajectory", "a.gif"), "--trajectory: shows one run"),
        (("--trajectory", "a.mp4"), "--trajectory a.mp4: ends with one of .png, .gif"),
        (("--class", "moon"), "--class moon: the names of classes are in the recipe"),
        (("--class", "1"), "is not conditioned on classes"),
        (("--negative", "man"), "set a guidance above 1"),
        (("--system", "dalle"), "is no pipeline's run directory"),
        (("--from-noise", "none.safetensors"), "none.safetensors: no such file"),
    ],
)
def test_what_cannot_be_generated_is_refused_by_its_option(
    refused, captioned, words, message, tmp_path
):
    report = refused("sample", captioned, "man", *words, "--out", tmp_path / "no.png")
    assert message in report
    assert not (tmp_path / "no.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--class", "moon"), "--class moon: there is no such class; there is"),
        (("--class", "7"), "there is no class 7, classes are 0 to 2"),
        (("a caption",), "is not conditioned on captions"),
    ],
)
def test_what_a_model_of_classes_does_not_generate_is_refused(
    refused, classes, words, message, tmp_path
):
    assert message in refused("sample", classes, *words, "--out", tmp_path / "no.png")


def test_directories_without_a_model_say_what_they_are(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        find_model(str(tmp_path / "none"))
    with pytest.raises(UserError, match="neither a model directory"):
        find_model(str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="has not written a model yet"):
        find_model(str(tmp_path))


def test_a_model_directory_finds_the_names_in_the_run_around_it(classes):
    model = find_model(str(classes / "model"))
    assert model == find_model(str(classes))
    assert model.label("square") == 1
    assert model.class_name(2) == "star"


def test_a_model_in_object_storage_is_found_by_its_run_or_its_directory():
    config = TextDiffusionConfig(
        image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=40, text_length=6
    )
    saved("memory://sweep/base/model", config)
    assert find_model("memory://sweep/base").directory == "memory://sweep/base/model"
    assert find_model("memory://sweep/base/model").directory == "memory://sweep/base/model"
    with pytest.raises(UserError, match=r"none/config\.json: no such file"):
        find_model("memory://sweep/none")


def test_settings_reach_the_system_they_belong_to():
    cascade = with_overrides(
        CascadeSystem(base="b", upsampler="u"),
        {"guidance": 3, "steps": 7, "solver": "heun", "level": 0.5},
    )
    assert isinstance(cascade, CascadeSystem)
    assert cascade.base_sampling.sampling().solver.kind == "heun"
    assert (cascade.base_sampling.guidance, cascade.base_sampling.steps) == (3, 7)
    assert [each.level for each in cascade.stage_sampling] == [0.5]
    several = CascadeSystem(base="b", upsamplers=("u", "v"), upsampler_sampling=({}, {"steps": 9}))
    several = with_overrides(several, {"level": 0.5, "thresholding": "dynamic"})
    assert [(each.steps, each.level) for each in several.stage_sampling] == [(25, 0.5), (9, 0.5)]
    assert several.base_sampling.sampling().thresholding.kind == "dynamic"
    dalle = with_overrides(DalleSystem(prior="p", dvae="d", candidates=1), {"temperature": 0.5})
    assert isinstance(dalle, DalleSystem)
    assert dalle.sampling.temperature == 0.5
    one = with_overrides(DiffusionSystem(model="m"), {"eta": 0.5, "solver": "ddim", "rescale": 0.7})
    assert isinstance(one, DiffusionSystem)
    assert one.sampling.solver.eta == 0.5
    assert one.sampling.rescale == 0.7


UNCLIP = UnclipSystem(clip="c", decoder="d", upsamplers=("u", "v"))


def test_settings_reach_one_super_resolution_model_or_all_of_them():
    changes = {"upsampler-steps.1": 3, "upsampler-steps": 5, "level.0": 0.1, "steps": 7}
    changes |= {"upsampler-guidance": 2, "upsampler-solver.1": "heun"}
    for config in (UNCLIP, CascadeSystem(base="b", upsamplers=("u", "v"))):
        first, second = with_overrides(config, changes).stage_sampling
        assert (first.steps, first.level, first.guidance, first.solver) == (5, 0.1, 2, None)
        assert (second.steps, second.level, second.guidance) == (3, 0, 2)
        assert second.sampling().solver.kind == "heun"
    assert with_overrides(UNCLIP, {"steps": 7}).stage_sampling == UNCLIP.stage_sampling


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (UNCLIP, {"level.2": 0.1}, r"--set level\.2: has no such .*the numbers are 0 to 1"),
        (UNCLIP, {"level.last": 0.1}, r"--set level\.last: has no such super-resolution"),
        (
            UNCLIP,
            {"prior-steps.0": 2},
            r"--set prior-steps\.0: a system of kind unclip has no such",
        ),
        (UNCLIP, {"level": 2}, r"--set level 2: Input should be less than or equal to 1"),
        (UNCLIP, {"upsampler-steps.1": 0}, r"--set upsampler-steps\.1 0: Input should be greater"),
        (UnclipSystem(clip="c", decoder="d"), {"level": 0}, "has no super-resolution models"),
    ],
)
def test_settings_of_super_resolution_that_cannot_be_are_refused(config, settings, message):
    with pytest.raises(UserError, match=message):
        with_overrides(config, settings)


def test_options_become_settings():
    assert parse_overrides({"steps": 4, "solver": None}, ["classifier_scale=2"]) == {
        "steps": 4,
        "classifier-scale": 2,
    }
    assert parse_sweep(["guidance=1,2.5", "solver=ddim,heun"]) == {
        "guidance": (1, 2.5),
        "solver": ("ddim", "heun"),
    }
    with pytest.raises(UserError, match="is set already"):
        parse_overrides({"steps": 4}, ["steps=5"])
    with pytest.raises(UserError, match="is swept already"):
        parse_sweep(["steps=1", "steps=2"])
