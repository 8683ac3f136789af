"""A class-conditional model evaluated by a classifier trained on real images alone."""

import json

import pytest
import torch
from saved_network import saved

from evaluation.class_conditional import GRID, balanced
from evaluation.config import ClassConditionalConfig
from evaluation.evaluate import evaluate
from evaluation.metrics.linear_probe import LinearProbe
from evaluation.result import EvaluationResult
from launch.evaluate import evaluate_in_processes
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import LatentScaling
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage

GROUPS = ["activities", "smileys-emotion"]
FACES = ["grinning face", "grinning squinting face", "smiling face", "neutral face"]
THINGS = ["fireworks", "sparkler", "softball", "goal net"]
FEW = {"url": "data/emoji", "split": "concept", "where": {"base": [*FACES, *THINGS]}}


def clouds(count, rng, *, apart=6.0):
    """Features of two classes, `count` of the first and a tenth of it of the second."""
    labels = torch.cat([torch.zeros(count), torch.ones(count // 10)]).long()
    features = torch.randn(len(labels), 5, generator=rng)
    features[:, 2] += apart * labels
    return features, labels


def test_the_probe_separates_classes_that_a_plane_separates():
    rng = torch.Generator().manual_seed(0)
    probe = LinearProbe.fit(*clouds(200, rng), 2)
    features, labels = clouds(200, rng)
    assert (probe(features) == labels).float().mean() > 0.99


def test_the_probe_does_not_depend_on_the_scale_of_features():
    features, labels = clouds(60, torch.Generator().manual_seed(1), apart=1.0)
    scale, shift = torch.tensor([1.0, 50.0, 0.1, 7.0, 1e3]), torch.arange(5.0)
    plain = LinearProbe.fit(features, labels, 2)
    scaled = LinearProbe.fit(features * scale + shift, labels, 2)
    assert torch.equal(plain(features), scaled(features * scale + shift))


def test_a_rare_class_counts_as_much_as_a_common_one():
    features, labels = clouds(400, torch.Generator().manual_seed(2), apart=1.5)
    right = LinearProbe.fit(features, labels, 2)(features) == labels
    rates = [right[labels == label].double().mean().item() for label in (0, 1)]
    assert abs(rates[0] - rates[1]) < 0.15


def test_a_class_without_samples_is_refused():
    with pytest.raises(ValueError, match="each of 3 classes"):
        LinearProbe.fit(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]), 3)


def test_the_reference_has_as_many_images_of_each_class():
    labels = torch.tensor([0, 1, 1, 2, 1, 0, 2, 2, 2])
    chosen = balanced(labels, 0)
    assert torch.bincount(labels[chosen]).tolist() == [2, 2, 2]
    assert len(set(chosen.tolist())) == 6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The directory of an untrained class-conditional network."""
    directory = tmp_path_factory.mktemp("classes") / "model"
    config = UNetConfig(
        image_size=8, channels=8, multipliers=(1,), depth=1, groups=4, attention=(),
        head_width=4, classes=2, null_class=True,
    )  # fmt: skip
    torch.manual_seed(0)
    store.save(str(directory), config, config.build().state_dict(), card="tiny")
    return directory


def settings(model, **changes):
    tree = {
        "kind": "class_conditional",
        "name": "tiny",
        "system": {"kind": "diffusion", "model": str(model), "sampling": {"steps": 2}},
        "classes": {"attribute": "group", "values": GROUPS},
        "reference": {"url": "data/emoji", "split": "concept", "where": {"tone": ["none"]}},
        "guidance_scales": [1.0, 3.0],
        "samples_per_class": 5,
        "precision": "fp32",
    }
    return ClassConditionalConfig.model_validate(tree | changes)


def test_every_scale_is_compared_with_real_images_and_chance(model, tmp_path):
    result = evaluate(settings(model), tmp_path)
    assert EvaluationResult.read(tmp_path / "evaluation.json").metrics == result.metrics
    tree = json.loads((tmp_path / "evaluation.json").read_text())
    assert tree["kind"] == "class_conditional"
    accuracy = tree["metrics"]["accuracy"]
    assert accuracy["chance"] == 0.5
    assert accuracy["real_test"]["value"] > 0.8  # real balls and real faces
    scales = {"guidance 1", "guidance 3"}
    assert set(accuracy) == scales | {"real_test", "chance"}
    for scale in scales:
        assert accuracy[scale]["n"] == 10
        assert accuracy[scale]["value"] < 1  # of images of noise
    assert tree["metrics"]["network_calls"] == {"guidance 1": 2, "guidance 3": 4}
    assert set(tree["metrics"]["fd_efficientnet_lite0"]) == scales
    assert (tmp_path / "grid_classes.png").is_file()
    assert "| accuracy | chance | 0.5 |" in (tmp_path / "report.md").read_text()


def test_classes_that_the_model_does_not_generate_are_refused(model, tmp_path):
    three = {"attribute": "group", "values": [*GROUPS, "flags"]}
    with pytest.raises(UserError, match="3 are named, but"):
        evaluate(settings(model, classes=three), tmp_path)


@pytest.mark.processes
def test_two_processes_give_the_metrics_of_one(model, tmp_path):
    config, files = settings(model, guidance_scales=[2.0], batch=3, reference=FEW), []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        evaluate_in_processes(config, out, lambda *_: None, device="cpu", processes=processes)
        files.append(json.loads((out / "evaluation.json").read_text()) | {"seconds": {}})
    assert files[0] == files[1]
    assert (tmp_path / "1" / GRID).read_bytes() == (tmp_path / "2" / GRID).read_bytes()


def test_no_tensor_is_made_on_the_default_device(model, tmp_path):
    config = settings(model, guidance_scales=[2.0], batch=3, reference=FEW)
    with torch.device("meta"):
        result = evaluate(config, tmp_path)
    assert result.metrics["accuracy"]["guidance 2"].n == 10


def test_a_system_of_latents_is_evaluated_as_one_of_pixels(tmp_path):
    pyramid = {"kind": "resnet", "width": 4, "multipliers": [1, 2], "blocks": 1, "groups": 2}
    tree = {"image_size": 16, "channels": 4, "pyramid": pyramid, "bottleneck": {"kind": "gaussian"}}
    stage = saved(tmp_path / "kl", AutoencoderConfig.model_validate(tree))
    scaling = LatentScaling(mean=0.0, std=1.0, samples=1)
    found = FirstStage(model=stage, digest=store.describe(stage).digest, scaling=scaling)
    config = UNetConfig(
        image_size=8, image_channels=4, channels=8, multipliers=(1,), depth=1, groups=4,
        attention=(), head_width=4, classes=2, null_class=True,
    )  # fmt: skip
    model = saved(tmp_path / "unet", config, first_stage=found)
    system = {"kind": "latent", "model": model, "sampling": {"steps": 2}}
    result = evaluate(
        settings(model, system=system, guidance_scales=[2.0], reference=FEW), tmp_path / "out"
    )
    assert result.metrics["accuracy"]["guidance 2"].n == 10
    assert result.metrics["network_calls"]["guidance 2"] == 4
    protocol = json.loads((tmp_path / "out" / "evaluation.json").read_text())["protocol"]
    assert protocol["system"]["digests"]["first_stage"] == found.digest
    assert protocol["reference"]["image_size"] == 16
