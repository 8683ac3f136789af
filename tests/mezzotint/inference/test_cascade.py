"""A cascade as a generator."""

import pytest
import torch

from mezzotint.common.errors import UserError
from mezzotint.inference.cascade import CascadeGenerator, sample_base, upsample
from mezzotint.inference.config import CascadeSystem, StageSampling
from mezzotint.inference.generator import GenerationRequest, Prompt, image_generator
from mezzotint.inference.images import to_bytes
from mezzotint.inference.runtime import Runtime
from models.diffusion.sampling import NFE
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig
from models.nn.random import BatchGenerator

TEXT = {"a": [3, 4, 0], "b": [5, 0, 0]}
PROMPTS = tuple(map(Prompt, TEXT))


def tokenize(captions):
    return torch.tensor([TEXT[caption] for caption in captions])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    base = (
        TextDiffusionConfig(
            image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=9, text_length=3
        )
        .build()
        .eval()
    )
    upsampler = SuperResolutionConfig(low_size=8, image_size=16, channels=(8,), blocks=1).build()
    with torch.no_grad():
        for parameter in (*base.parameters(), *upsampler.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=rng(1)) * 0.1)
    return base, upsampler.eval()


@pytest.fixture
def cascade(networks):
    def build(**base):
        config = CascadeSystem(
            base="base",
            upsampler="upsampler",
            base_sampling=StageSampling(steps=4, **base),
            upsampler_sampling=StageSampling(steps=2, level=0.1),
        )
        return CascadeGenerator(config, *networks, tokenize, Runtime.of(precision="fp32"))

    return build


def test_a_cascade_generates_in_two_stages_and_repeats_under_its_seed(cascade):
    seen, generator = [], cascade(guidance=2.0)

    def generate(**settings):
        return generator.generate(
            GenerationRequest(PROMPTS, **settings), progress=lambda *done: seen.append(done)
        )

    result = generate()
    assert result.images.shape == (2, 1, 16, 16, 3)
    assert result.nfe == NFE(network=2 * 4 + 2)
    assert seen == [(2 * step // 6, 2) for step in range(1, 7)]
    assert torch.equal(result.images, generate().images)
    assert not torch.equal(result.images, generate(seed=1).images)


def test_an_image_is_what_both_stages_make_of_its_own_random_numbers(cascade, networks):
    generator = cascade(guidance=2.0, eta=1.0)
    result = generator.generate(GenerationRequest(PROMPTS, number=2, seed=3))
    own = BatchGenerator.of([image_generator(3, 1, PROMPTS[1])])
    low = sample_base(networks[0], tokenize("b"), own, generator.config.base_sampling, NFE())
    assert low.shape == (1, 3, 8, 8)
    images = upsample(networks[1], low, own, generator.config.upsampler_sampling, NFE())
    assert float(images.abs().max()) <= 1
    # alone in its batch, sums round differently
    assert int((to_bytes(images)[0].int() - result.images[1, 1].int()).abs().max()) <= 1
    assert not torch.equal(result.images[1, 0], result.images[1, 1])


def test_guidance_zero_ignores_the_caption(networks):
    text = tokenize("ab")

    def generate(text, guidance):
        stage = StageSampling(steps=3, guidance=guidance)
        return sample_base(networks[0], text, rng(), stage, NFE())

    assert torch.equal(generate(text, 0.0), generate(text.flip(0), 0.0))
    assert not torch.allclose(generate(text, 2.0), generate(text.flip(0), 2.0))


def test_a_base_of_any_process_starts_at_its_own_noise_level():
    schedule = {"kind": "edm", "sigma_max": 40.0}
    config = {
        "image_size": 8,
        "channels": 8,
        "multipliers": [1],
        "depth": 1,
        "attention": [],
        "head_width": 8,
        "groups": 2,
        "text": {"vocab": 9, "length": 3, "width": 8, "layers": 1, "heads": 1},
        "process": {"schedule": schedule, "prediction_type": "noise"},
    }
    base = UNetConfig.model_validate(config).build().eval()
    inputs = []
    base.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    sample_base(base, tokenize("ab"), rng(), StageSampling(steps=2), NFE())
    assert float(inputs[0].std()) == pytest.approx(40, rel=0.15)


def test_a_cascade_refuses_a_callback_that_it_would_not_call(cascade):
    with pytest.raises(UserError, match="callback: a cascade reports no steps"):
        cascade().generate(GenerationRequest(PROMPTS), callback=lambda step: None)
