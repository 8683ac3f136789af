"""Generators of diffusion models from their directories, and bits per dimension."""

import pytest
import torch

from data_pipeline.text.tokenizer import Tokenizer
from evaluation.metrics.likelihood import Integration, bits_per_dimension
from mezzotint.common.errors import UserError
from mezzotint.inference.config import CascadeSystem, DiffusionSystem
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.load import load_generator
from models import store
from models.autoencoders.dvae import DVAEConfig
from models.diffusion.sampling import NFE
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig

CAPTIONS = ("woman pilot", "man cook")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Model directories of untrained networks that are not blank."""
    root = tmp_path_factory.mktemp("home")
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    configs = {
        "base": TextDiffusionConfig(
            image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=40, text_length=6
        ),
        "upsampler": SuperResolutionConfig(low_size=8, image_size=16, channels=(8,), blocks=1),
        "classes": UNetConfig(
            image_size=8, channels=8, multipliers=(1,), depth=1, groups=4, attention=(),
            head_width=4, classes=3,
        ),
        "dvae": DVAEConfig(image_size=16, vocab=8, width=8, groups=2, patch=2, initial_width=8),
    }  # fmt: skip
    for name, config in configs.items():
        torch.manual_seed(0)
        network = config.build()
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.05 * torch.randn(weight.shape))
        reads = {"tokenizer": Tokenizer.train(words, 40), "text_length": 6}
        extra = reads if name == "base" else {}
        store.save(str(root / name), config, network.state_dict(), card="tiny", **extra)
    return root


def generator(home, model="base", **settings):
    tree = {"kind": "diffusion", "model": str(home / model), "sampling": {"steps": 3}} | settings
    return load_generator(DiffusionSystem.model_validate(tree), precision="fp32")


PROMPTS = tuple(map(Prompt, CAPTIONS))


def generate(system, prompts=PROMPTS, **settings):
    return system.generate(GenerationRequest(prompts, **settings))


def test_the_same_captions_and_seed_give_the_same_images_and_their_calls(home):
    system = generator(home, sampling={"steps": 3, "guidance": 2.0})
    result = generate(system, seed=5)
    assert result.images.shape == (2, 1, 8, 8, 3)
    assert result.nfe == NFE(network=6)
    assert torch.equal(result.images, generate(system, seed=5).images)
    assert not torch.equal(result.images, generate(system, seed=6).images)
    protocol = system.protocol()
    assert {"sampler", "steps", "guidance", "digests", "precision"} <= protocol.keys()
    assert protocol["sampling"]["solver"] == {"kind": "ddim", "eta": 0.0}


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_an_image_is_that_of_its_seed_caption_and_number(home, solver):
    system = generator(home, sampling={"steps": 3, "solver": {"kind": solver}})
    four = generate(system, number=2, seed=1).images
    assert torch.equal(four, generate(system, number=2, seed=1).images)
    alone = generate(system, (Prompt(CAPTIONS[1]),), number=2, seed=1).images
    assert int((four[1:].int() - alone.int()).abs().max()) <= 1
    assert not torch.equal(four[0, 0], four[0, 1])


def test_a_negative_caption_needs_guidance_and_changes_what_is_generated(home):
    strong = {"steps": 3, "guidance": 4.0}
    plain = generate(generator(home, sampling=strong)).images
    away = generate(generator(home, sampling=strong, negative="person cook")).images
    assert not torch.equal(plain, away)
    with pytest.raises(UserError, match="set a guidance above 1"):
        generate(generator(home, negative="person cook"))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt(), "has no null class: name a class"),
        (Prompt(label=3), "there is no class 3, classes are 0 to 2"),
        (Prompt("x", 1), "is not conditioned on captions"),
    ],
)
def test_a_model_of_classes_says_what_it_is_conditioned_on(home, prompt, message):
    with pytest.raises(UserError, match=message):
        generate(generator(home, "classes"), (prompt,))


def test_a_model_of_classes_does_not_take_captions(home):
    with pytest.raises(UserError, match="conditioned on 3 classes"):
        generate(generator(home, "classes"))


def test_models_that_do_not_generate_by_themselves_are_refused(home):
    with pytest.raises(UserError, match="holds a dvae, not a diffusion model of images"):
        generator(home, "dvae")
    with pytest.raises(Exception, match="upsampler: upsamples images"):
        generator(home, "upsampler")


def test_a_cascade_takes_other_solvers_and_counts_its_calls(home):
    def cascade(**base):
        return load_generator(
            CascadeSystem.model_validate(
                {
                    "base": str(home / "base"),
                    "upsampler": str(home / "upsampler"),
                    "base_sampling": {"steps": 3, "guidance": 2.0} | base,
                    "upsampler_sampling": {"steps": 2},
                }
            ),
            precision="fp32",
        )

    plain, heun = cascade(), cascade(solver={"kind": "heun"})
    assert plain.protocol()["sampler"] == "DDIM, uniform times, x0 clamped"
    assert heun.protocol()["sampler"] == "heun, log_snr times and DDIM, uniform times, x0 clamped"
    assert generate(plain).nfe == NFE(network=6 + 2)
    assert generate(heun).nfe == NFE(network=12 + 2)
    with pytest.raises(ValueError, match="eta belongs to DDIM"):
        cascade(eta=1.0, solver={"kind": "heun"})


def test_bits_per_dimension_do_not_depend_on_what_is_evaluated_after(home):
    system = generator(home)
    levels = torch.randint(
        256, (5, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    prompts = [Prompt("man cook")] * 5
    settings = Integration(steps=4, batch=2)
    seen = []
    bits = bits_per_dimension(system, levels, prompts, settings, lambda *done: seen.append(done))
    assert bits.each.shape == (5,)
    assert bits.mean.low <= bits.mean.value <= bits.mean.high
    assert bits.mean.n == 5
    assert seen[-1] == (12, 12)
    fewer = bits_per_dimension(system, levels[:4], prompts[:4], settings)
    assert torch.equal(bits.each[:4], fewer.each)
    assert bits.protocol["dequantisation"] == "uniform over 256 levels"
