"""Tasks of diffusion networks make no tensor on torch's default device."""

import pytest
import torch
from pydantic import TypeAdapter

from data_pipeline.batch import Batch
from models.config import ModelConfig
from trainer.task import Step
from trainer.tasks.config import TaskConfig

CPU = torch.device("cpu")
PARTS = {
    **{"image_size": 16, "channels": 16, "multipliers": (1, 2), "depth": 1},
    **{"attention": (8,), "head_width": 8, "groups": 8},
}
CLASSES = {"classes": 3, "null_class": True}
CASES = {
    "classes, learned variance": (
        {"kind": "unet", **PARTS, **CLASSES, "process": {"variance": "learned"}},
        {
            "kind": "denoising",
            "condition": {"kind": "class", "drop": 0.5},
            "loss": {"kind": "hybrid"},
            "times": {"kind": "importance"},
        },
    ),
    "captions": (
        {
            **{"kind": "text_diffusion", "image_size": 16, "patch": 4, "width": 32, "layers": 2},
            **{"heads": 2, "text_vocab": 20, "text_length": 5},
        },
        {"kind": "denoising", "condition": {"kind": "text", "drop": 0.5}},
    ),
    "crops": (
        {"kind": "super_resolution", "low_size": 8, "image_size": 16, "channels": (16, 16)},
        {"kind": "denoising", "condition": {"kind": "low_resolution", "crop": 8}},
    ),
    "noisy classifier": (
        {"kind": "noisy_classifier", **PARTS, "classes": 3},
        {"kind": "classification"},
    ),
}


def rng(seed=0):
    return torch.Generator(CPU).manual_seed(seed)


@pytest.fixture
def on_meta():
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)


@pytest.mark.parametrize("name", CASES)
def test_a_step_and_a_preview_stay_on_the_device_of_the_batch(name, on_meta):
    model, settings = CASES[name]
    network = TypeAdapter(ModelConfig).validate_python(model).build()
    on_meta()
    task = TypeAdapter(TaskConfig).validate_python(settings).build(network)
    batch = Batch(
        keys=("",) * 4,
        captions=("",) * 4,
        image=torch.rand(4, 3, 16, 16, generator=rng(), device=CPU) * 2 - 1,
        text=torch.ones(4, 5, dtype=torch.int64, device=CPU),
        label=torch.tensor([0, 1, 2, 0], device=CPU),
    )
    step = Step(0, rng())
    for loss in task.losses({"model": network}, batch, step):
        loss.value.backward()
        assert loss.value.device == CPU
        assert all(values.device == CPU for values in loss.metrics.values())
    task.after_update(step)
    previews = task.preview({"model": network}, batch, rng())
    assert all(images.device == CPU for images in previews.values())
    assert previews
