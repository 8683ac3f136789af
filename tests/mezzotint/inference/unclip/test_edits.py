"""Edits by an unCLIP system: inversion, variations, interpolations, text differences."""

from dataclasses import replace

import pytest
import torch
from unclip_home import DIM, write_system

from mezzotint.common.errors import UserError
from mezzotint.inference.load import load_generator
from mezzotint.inference.unclip.edits import (
    EditSettings,
    interpolate,
    invert,
    render,
    text_edit,
    variations,
)

SETTINGS = EditSettings(steps=6, batch_size=3)


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    return load_generator(write_system(tmp_path_factory.mktemp("unclip")), precision="fp32")


@pytest.fixture(scope="module")
def images():
    """Smooth ones: (2, 8, 8, 3) uint8."""
    ramp = torch.linspace(0, 255, 8)
    first = ramp[:, None, None].expand(8, 8, 3)
    return torch.stack([first, first.transpose(0, 1)]).to(torch.uint8)


@pytest.fixture(scope="module")
def latents(system, images):
    return invert(system, images, settings=SETTINGS)


def decoded(system, latents, **settings):
    """The latents as they are, without super-resolution."""
    count = len(latents.captions)
    return render(
        system.up_to(0), latents.embedding, latents.noise, keys=[("x",)] * count,
        captions=latents.captions, settings=SETTINGS, **settings,
    )  # fmt: skip


def test_inverted_images_are_generated_again(system, images, latents):
    assert latents.noise.shape == (2, 3, 8, 8)
    assert torch.allclose(latents.embedding, system.clip.project_images(images), atol=1e-6)
    assert torch.equal(decoded(system, latents), latents.reconstruction)
    finer = invert(system, images, settings=EditSettings(steps=100))
    assert bool((finer.psnr > latents.psnr).all())
    assert float(finer.psnr.min()) > 34


def test_an_image_is_inverted_alone_as_among_others(system, images, latents):
    alone = invert(system, images[1:], settings=SETTINGS)
    assert torch.allclose(alone.noise, latents.noise[1:], atol=1e-5)
    assert alone.captions == ("",)
    assert torch.equal(latents.row(1).noise, latents.noise[1:])


def test_embeddings_of_larger_images_replace_those_of_the_decoders(system, images):
    given = torch.ones(DIM)
    found = invert(system, images, embedding=given, settings=SETTINGS)
    assert torch.equal(found.embedding, given.expand(2, -1))


def test_variations_start_from_the_image_itself(system, latents):
    low = system.up_to(0)
    found = variations(low, latents, (0.0, 1.0), number=2, settings=SETTINGS)
    assert found.shape == (2, 2, 2, 8, 8, 3)
    unchanged = latents.reconstruction[:, None].expand(-1, 2, -1, -1, -1)
    assert int((found[:, 0].int() - unchanged.int()).abs().max()) <= 1
    assert not torch.equal(found[:, 1, 0], found[:, 1, 1])
    large = variations(system, latents, (0.0, 1.0), settings=SETTINGS)
    assert large.shape == (2, 2, 1, 16, 16, 3)
    other = replace(SETTINGS, seed=1)
    assert not torch.equal(large, variations(system, latents, (0.0, 1.0), settings=other))


def test_an_interpolation_goes_from_one_image_to_the_other(system, latents):
    low = system.up_to(0)
    found = interpolate(low, latents, (0.0, 0.5, 1.0), settings=SETTINGS)
    ends = latents.reconstruction
    assert int((found[[0, 2]].int() - ends.int()).abs().max()) <= 1
    assert not torch.equal(found[1], found[0])
    kept = interpolate(low, latents, (0.0, 1.0), noise=False, settings=SETTINGS)
    assert int((kept[0].int() - ends[0].int()).abs().max()) <= 1
    assert not torch.equal(kept[1], ends[1])
    with pytest.raises(UserError, match="needs two images, got 1"):
        interpolate(low, latents.row(0), (0.5,))


def test_a_text_edit_starts_from_the_image_itself(system, latents):
    low = system.up_to(0)
    found = text_edit(low, latents, "man pilot", "woman cook", (0.0, 0.5), settings=SETTINGS)
    assert found.shape == (2, 2, 8, 8, 3)
    assert int((found[:, 0].int() - latents.reconstruction.int()).abs().max()) <= 1
    assert not torch.equal(found[:, 1], found[:, 0])
    with pytest.raises(UserError, match="reads both captions as the same"):
        text_edit(low, latents, "man pilot", "man pilot", (0.5,), settings=SETTINGS)


def test_guidance_acts_both_ways(system, images, latents):
    guided = EditSettings(steps=50, guidance=1.5)
    found = invert(system, images, settings=guided)
    assert not torch.allclose(found.noise, latents.noise, atol=1e-2)
    assert float(found.psnr.min()) > 24


def test_progress_is_that_of_all_images_and_steps(system, latents):
    seen = []
    variations(
        system, latents, (0.0, 1.0), settings=SETTINGS, progress=lambda *done: seen.append(done)
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 16, 16, 3, dtype=torch.uint8), "16 x 16 pixels, but the decoder generates"),
        (torch.zeros(1, 8, 8, 1, dtype=torch.uint8), "the decoder takes RGB images"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "the decoder takes RGB images"),
        (torch.zeros(1, 8, 8, 3), "float32; the decoder takes RGB images"),
    ],
)
def test_images_of_another_size_or_colour_are_refused(system, images, message):
    with pytest.raises(UserError, match=message):
        invert(system, images)


def test_captions_and_embeddings_are_one_for_each_image(system, images):
    with pytest.raises(UserError, match="captions: 1 for 2 images"):
        invert(system, images, captions=["man pilot"])
    with pytest.raises(UserError, match="image_embedding: has shape"):
        invert(system, images, embedding=torch.ones(3, DIM))
