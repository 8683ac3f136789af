"""An image is a function of system, settings, seed, prompt and number, whatever is beside it."""

from dataclasses import replace

import pytest
import torch
from tiny_run import write_run

from evaluation.metrics.likelihood import Integration, bits_per_dimension
from evaluation.samples import EvaluationPrompt
from evaluation.samples import generate as generate_samples
from launch.sampling.plan import SampleOptions, plan_sampling
from launch.sampling.sample import generate_cells
from mezzotint.inference.config import DiffusionSystem
from mezzotint.inference.generator import Prompt
from mezzotint.inference.load import load_generator
from mezzotint.inference.process_group import ProcessGroup

A, B, C = "woman pilot", "man cook", "person pilot"
LEVELS = 1
"""Levels of 255 by which rounding may change an image that is computed with others, in fp32."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pipeline's run of untrained networks."""
    return write_run(tmp_path_factory.mktemp("run"))


def sampled(run, system, captions=(A,), classes=(), **settings):
    """What `mezzotint sample` generates: one result per prompt."""
    where = str(run) if system in ("dalle", "plain", "cascade", "hierarchy") else str(run / system)
    options = SampleOptions(
        captions=captions,
        classes=classes,
        system=system if where == str(run) else None,
        seed=1,
        **{"number": 4, "precision": "fp32"} | settings,
    )
    found = generate_cells(plan_sampling(where, options), torch.device("cpu"), ProcessGroup())
    assert found is not None
    return found[0][0]


def same(one, other, levels=LEVELS):
    """Compare the results of one prompt: codes exactly, images and scores up to rounding."""
    if one.codes is not None:
        assert torch.equal(one.codes, other.codes)
    assert int((one.images.int() - other.images.int()).abs().max()) <= levels
    if one.scores is not None:
        assert torch.allclose(one.scores, other.scores, atol=1e-5)


def row(result, index, number=None):
    """The result of one prompt, and of its first images."""
    return replace(
        result,
        images=result.images[index, :number],
        scores=None if result.scores is None else result.scores[index, :number],
        codes=None if result.codes is None else result.codes[index, :number],
    )


SYSTEMS = {
    "dalle": {},
    "plain": {},
    "hierarchy": {},
    "cascade": {},
    "base": {"overrides": {"solver": "ddpm", "steps": 4, "guidance": 2.0}},
    "classes": {"overrides": {"solver": "euler_ancestral", "steps": 4, "guidance": 2.0}},
}
PROMPTS = [A, B, C, "man pilot"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_image_does_not_depend_on_what_is_beside_it_nor_on_order_or_batch(run, system):
    settings = SYSTEMS[system]

    def images(*indices, **more):
        if system == "classes":
            labels = tuple("0121"[each] for each in indices)
            return sampled(run, system, (), tuple(dict.fromkeys(labels)), **settings | more)
        return sampled(run, system, tuple(PROMPTS[each] for each in indices), **settings | more)

    alone = images(0)
    same(row(alone, 0), row(images(0, 1, 2), 0))
    same(row(alone, 0), row(images(2, 1, 0), 2))
    same(row(alone, 0), row(images(0, batch=1), 0))
    same(row(alone, 0), row(images(0, 1, 2, batch=8), 0))
    more = {"number": 6} if alone.scores is None else {"candidates": 6}
    count = alone.images.shape[1]
    same(row(alone, 0), row(images(0, **more), 0, count))
    beside = images(0, 1)
    assert not torch.equal(beside.images[0], beside.images[1])
    assert not torch.equal(alone.images[0, 0], alone.images[0, 1])


@pytest.mark.parametrize("system", ["dalle", "hierarchy"])
def test_systems_of_codes_compute_in_fp32_unless_another_precision_is_asked_for(run, system):
    config = plan_sampling(str(run), SampleOptions(captions=(A,), system=system)).configs[0]
    assert load_generator(config).protocol()["precision"] == "fp32"
    assert load_generator(config, precision="bf16").protocol()["precision"] == "bf16 autocast"


@pytest.mark.parametrize("system", ["cascade", "base", "classes"])
def test_in_bf16_an_image_differs_by_a_few_levels_when_it_is_computed_with_others(run, system):
    captions, classes = ((A,), ()) if system != "classes" else ((), ("1",))
    others = ((A, B, C), ()) if system != "classes" else ((), ("1", "0", "2"))
    settings = SYSTEMS[system] | {"precision": "bf16"}
    alone = sampled(run, system, captions, classes, **settings)
    beside = sampled(run, system, *others, **settings)
    same(row(alone, 0), row(beside, 0), 8)


@pytest.mark.parametrize("system", ["dalle", "cascade"])
def test_images_of_an_evaluation_do_not_depend_on_its_limit_and_batch(run, system):
    config = plan_sampling(str(run), SampleOptions(captions=(A,), system=system)).configs[0]
    generator = load_generator(config, precision="fp32")
    prompts = [
        EvaluationPrompt("test", f"{index:04d}", PROMPTS[index % 3], 0) for index in range(5)
    ]
    whole = generate_samples(generator, prompts, seed=1, batch=4)
    few = generate_samples(generator, prompts[3:1:-1], seed=1, batch=1)
    difference = whole.candidates[[3, 2]].int() - few.candidates.int()
    assert int(difference.abs().max()) <= LEVELS
    if whole.scores is not None:
        assert torch.equal(whole.scores[[3, 2]].argmax(dim=1), few.scores.argmax(dim=1))
    # the same caption of another sample is another image
    assert not torch.equal(whole.candidates[0], whole.candidates[3])


def test_the_noise_of_an_inverted_image_does_not_depend_on_the_others(run):
    system = DiffusionSystem(model=str(run / "base" / "model"), sampling={"steps": 5})
    generator = load_generator(system, precision="fp32")
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prompts = [Prompt(text) for text in (A, B, C, A, B)]
    together = generator.invert(images, prompts)
    alone = generator.invert(images[3:4], prompts[3:4])
    for one, other in (
        (together.noise[3:4], alone.noise),
        (together.reconstruction[3:4], alone.reconstruction),
    ):
        assert float((one - other).abs().max()) < 1e-5 * float(other.abs().max())


def test_the_bits_of_an_image_do_not_depend_on_the_others(run):
    generator = load_generator(DiffusionSystem(model=str(run / "base" / "model")), precision="fp32")
    rng = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (5, 8, 8, 3), generator=rng, dtype=torch.uint8)
    prompts = [Prompt(text) for text in (A, B, C, A, B)]
    settings = Integration(steps=3, batch=2)
    whole = bits_per_dimension(generator, levels, prompts, settings, keys="abcde").each
    order = [4, 2]
    few = bits_per_dimension(
        generator, levels[order], [prompts[each] for each in order], settings, keys="ec"
    ).each
    assert torch.allclose(whole[order], few, rtol=1e-5)
    other = bits_per_dimension(generator, levels[order], prompts[:2], settings, keys="xy").each
    assert not torch.allclose(few, other, rtol=1e-5)
