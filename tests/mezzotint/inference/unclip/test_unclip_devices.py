"""An unCLIP system keeps every tensor on the device it is given.

With meta as the default device, a tensor made without a device cannot be combined with one on the
CPU.
"""

import pytest
import torch
from unclip_home import write_system

from launch.edit.strips import Interpolation, TextEdit, Variations
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.load import load_generator
from mezzotint.inference.unclip.edits import EditSettings, invert

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_system(tmp_path_factory.mktemp("unclip"))


@pytest.fixture
def system(config):
    torch.set_default_device("meta")
    yield load_generator(config, device=CPU)
    torch.set_default_device(None)


def test_it_generates_on_the_given_device(system):
    assert system.generate(GenerationRequest((Prompt("man cook"),))).images.device == CPU


@pytest.mark.parametrize(
    "edit", [Variations((0.0, 1.0)), Interpolation(1), TextEdit("man cook", "woman cook", (0.5,))]
)
def test_edits_are_computed_on_the_given_device(system, edit):
    images = torch.arange(2 * 8 * 8 * 3, device=CPU).view(2, 8, 8, 3).to(torch.uint8)
    settings = EditSettings(steps=2)
    latents = invert(system, images, settings=settings)
    strip = edit.run(system, latents, settings, lambda done, total: None)
    assert strip.images.device == CPU
    assert all(bool(each.isfinite().all()) for each in strip.scores.values())
