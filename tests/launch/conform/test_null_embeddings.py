"""The share of samples without a CLIP embedding, or without a caption, is that of the recipe."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data_pipeline.batch import Batch
from launch.conform.null_captions import null_captions
from mezzotint.common.embedding_scaling import EmbeddingScaling
from models.diffusion.process import ProcessConfig
from trainer.task import Step
from trainer.tasks.conditioning.captions import TextCondition
from trainer.tasks.conditioning.clip_image import ClipImageCondition
from trainer.tasks.denoising import DenoisingConfig

SCALING = EmbeddingScaling(kind="l2_sqrt_d", dim=4, samples=1)


class Network(nn.Module):
    """Stands for a decoder; its settings are not those of a class."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(conditioning=frozenset({"clip_image", "text"}))
        self.process = ProcessConfig().build()

    def forward(self, x, t, condition):
        raise AssertionError("inputs alone are of interest")


def run_of(declared):
    """A run whose recipe says that captions are dropped by the share `declared`."""

    def task(share):
        text = TextCondition(kind="text", drop=share)
        condition = ClipImageCondition(kind="clip_image", drop=0.1, captions=text, scaling=SCALING)
        return DenoisingConfig(kind="denoising", condition=condition)

    def batch(count, first):
        return Batch(
            *((f"{first}",) * count, ("a",) * count),
            image=torch.zeros(count, 3, 8, 8),
            text=torch.ones(count, 3, dtype=torch.long),
            arrays={"image_embedding": torch.ones(count, 4)},
        )

    return SimpleNamespace(
        recipe=SimpleNamespace(task=task(declared), model=None),
        inputs=SimpleNamespace(task=task(0.5).build(Network())),
        **{"model": nn.Identity(), "batch": batch, "device": torch.device("cpu")},
        step=lambda number: Step(number, torch.Generator().manual_seed(number)),
    )


@pytest.mark.parametrize(("declared", "passes"), [(0.5, True), (0.2, False)])
def test_embeddings_and_captions_are_dropped_as_declared(declared, passes):
    found = null_captions(run_of(declared))
    assert found.passed == passes
    assert "have no clip_image, the recipe says 10%" in found.measured
