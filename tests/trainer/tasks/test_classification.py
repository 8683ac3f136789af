"""The classification task: losses and accuracies by noise level, without an engine."""

import pytest
import torch

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.diffusion.classifier import NoisyClassifierConfig
from models.diffusion.unet.network import UNetConfig
from trainer import setup
from trainer.recipe import load
from trainer.task import Step
from trainer.tasks.classification import ClassificationConfig, accuracies

MODEL = NoisyClassifierConfig(
    image_size=8, classes=2, channels=16, multipliers=(1, 2), depth=1, attention=(4,), head_width=8,
    groups=4,
)  # fmt: skip
LABEL = torch.arange(16) % 2


def batch():
    bright = (2.0 * LABEL - 1)[:, None, None, None] * 0.8
    return Batch(("",) * 16, ("",) * 16, bright.expand(16, 3, 8, 8), label=LABEL)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_few_steps_tell_bright_from_dark_best_where_it_is_clean():
    torch.manual_seed(0)
    model = MODEL.build()
    task = ClassificationConfig(kind="classification").build(model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for index in range(12):
        (loss,) = task.losses(task.parts(), batch(), Step(index, rng(index)))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        task.after_update(Step(index, rng(index)))
    assert set(loss.metrics) == {"accuracy", *(f"accuracy/quarter_{k}" for k in (1, 2, 3, 4))}
    assert float(loss.metrics["accuracy/quarter_1"]) == 1.0
    assert loss.value.item() < 0.6
    shown = task.preview(task.parts(), batch(), rng())
    assert sum(len(pictures) for pictures in shown.values()) == 16
    assert shown["right"].shape[1:] == (3, 8, 8)


def test_quarters_are_those_of_time():
    t = torch.tensor([0.9, 0.1, 0.6, 0.3, 0.95, 0.2, 0.7, 0.4])
    right = torch.tensor([0.0, 1, 0, 1, 1, 1, 0, 0])
    found = {name: float(value) for name, value in accuracies(right, t).items()}
    quarters = [found[f"accuracy/quarter_{k}"] for k in (1, 2, 3, 4)]
    assert quarters == [1.0, 0.5, 0.0, 0.5]
    assert found["accuracy"] == 0.5
    assert accuracies(right[:3], t[:3]).keys() == {"accuracy"}


def test_other_models_and_missing_labels_are_refused():
    with pytest.raises(UserError, match=r"classification trains model.kind noisy_classifier"):
        ClassificationConfig(kind="classification").build(
            UNetConfig(image_size=8, channels=32, multipliers=(1,), attention=(), heads=1).build()
        )
    task = ClassificationConfig(kind="classification").build(MODEL.build())
    with pytest.raises(UserError, match=r"data.label is not set"):
        next(task.losses(task.parts(), Batch(("",), ("",), batch().images[:1]), Step(0, rng())))


def test_labels_must_be_as_many_as_the_model_knows():
    recipe = load("recipes/emoji_classifier_noisy.yaml", ["model.classes=7"])
    with pytest.raises(UserError, match=r"gives \d classes and model.classes is 7; set model.cl"):
        setup.check(recipe)
