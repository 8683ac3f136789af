"""A cascade as a generator."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from saved_network import saved
from torch.nn.functional import avg_pool2d

from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common.errors import UserError
from mezzotint.inference.cascade import (
    CascadeGenerator,
    UpsamplingStage,
    sample_base,
    upsample,
)
from mezzotint.inference.config import CascadeSystem, StageSampling
from mezzotint.inference.generator import GenerationRequest, Prompt, image_generator
from mezzotint.inference.images import to_bytes
from mezzotint.inference.load import load_generator
from mezzotint.inference.runtime import Runtime
from mezzotint.inference.text_conditioning import TokenConditioning
from models.diffusion.condition import Condition
from models.diffusion.degradation import BlurAugmentation, GaussianAugmentation
from models.diffusion.process import ProcessConfig
from models.diffusion.sampling import NFE
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig
from models.nn.random import BatchGenerator, normal
from trainer.tasks.conditions import random_crop

TEXT = {"a": [3, 4, 0], "b": [5, 0, 0]}
PROMPTS = tuple(map(Prompt, TEXT))


def tokenize(captions):
    return torch.tensor([TEXT[caption] for caption in captions])


def base_images(base, captions, rng, stage, **options):
    """Images of the base from noise of the generator."""
    noise = normal((len(captions), 3, 8, 8), rng, torch.device("cpu"))
    return sample_base(
        base, Condition(text=tokenize(captions)), noise, rng, stage, NFE(), **options
    )


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
        base, upsampler = networks
        return CascadeGenerator(
            config,
            base,
            (UpsamplingStage("upsampler", upsampler),),
            TokenConditioning(tokenize, torch.device("cpu")),
            Runtime.of(precision="fp32"),
        )

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
    low = base_images(networks[0], "b", own, generator.config.base_sampling)
    assert low.shape == (1, 3, 8, 8)
    images = upsample(networks[1], low, own, generator.config.upsampler_sampling, NFE())
    assert float(images.abs().max()) <= 1
    # alone in its batch, sums round differently
    assert int((to_bytes(images)[0].int() - result.images[1, 1].int()).abs().max()) <= 1
    assert not torch.equal(result.images[1, 0], result.images[1, 1])


def test_guidance_zero_ignores_the_caption(networks):
    def generate(captions, guidance):
        return base_images(networks[0], captions, rng(), StageSampling(steps=3, guidance=guidance))

    assert torch.equal(generate("ab", 0.0), generate("ba", 0.0))
    assert not torch.allclose(generate("ab", 2.0), generate("ba", 2.0))


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
    base_images(base, "ab", rng(), StageSampling(steps=2))
    assert float(inputs[0].std()) == pytest.approx(40, rel=0.15)


def test_a_cascade_refuses_a_callback_that_it_would_not_call(cascade):
    with pytest.raises(UserError, match="callback: a cascade reports no steps"):
        cascade().generate(GenerationRequest(PROMPTS), callback=lambda step: None)


UPPER = UNetConfig.model_validate(
    {
        "image_size": 32,
        "channels": 8,
        "multipliers": [1],
        "depth": 1,
        "attention": [],
        "head_width": 8,
        "groups": 2,
        "text": {"vocab": 9, "length": 3, "width": 8, "layers": 1, "heads": 1},
        "low_resolution": {
            "size": 16,
            "augmentation": {"kind": "gaussian"},
            "condition_on_noise_level": True,
        },
    }
)


@pytest.fixture(scope="module")
def upper():
    """A UNet that enlarges 16 pixels to 32 and reads the caption."""
    torch.manual_seed(0)
    network = UPPER.build().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng(1)) * 0.1)
    return network


@pytest.fixture
def three(cascade, upper):
    """A cascade of three stages under the sampling of its upsamplers."""

    def build(*sampling):
        two, device = cascade(guidance=2.0), torch.device("cpu")
        config = CascadeSystem(
            base="base",
            upsamplers=("first", "second"),
            base_sampling=two.config.base_sampling,
            upsampler_sampling=sampling,
        )
        last = UpsamplingStage("upsamplers.1", upper, TokenConditioning(tokenize, device))
        return replace(two, config=config, stages=(*two.stages, last))

    return build


def test_each_stage_enlarges_the_images_of_the_one_before(three, networks, upper):
    first = StageSampling(steps=2, level=0.1)
    second = StageSampling(
        steps=3, level=0.2, guidance=1.5, solver={"kind": "heun"}, thresholding={"kind": "dynamic"}
    )
    generator, seen = three(first, second), []
    request = GenerationRequest(PROMPTS, seed=3)
    result = generator.generate(request, progress=lambda *done: seen.append(done))
    assert result.images.shape == (2, 1, 32, 32, 3)
    assert result.nfe == NFE(network=2 * 4 + 2 + 2 * 2 * 3)
    assert seen == [(2 * step // 9, 2) for step in range(1, 10)]
    own = BatchGenerator.of([image_generator(3, 0, PROMPTS[1])])
    low = base_images(networks[0], "b", own, generator.config.base_sampling)
    low = upsample(networks[1], low, own, first, NFE())
    condition = Condition(text=tokenize("b"))
    images = upsample(upper, low, own, second, NFE(), condition=condition)
    assert int((to_bytes(images)[0].int() - result.images[1, 0].int()).abs().max()) <= 1
    inputs = generator.up_to(1).generate(request).images
    assert int((to_bytes(low)[0].int() - inputs[1, 0].int()).abs().max()) <= 1
    assert generator.protocol()["level"] == {"upsamplers.0": 0.1, "upsamplers.1": 0.2}


class Known:
    """A network of 8 pixels that knows its image, of one value, under a process."""

    def __init__(self, value, process):
        self.value, self.process, self.config = value, process, SimpleNamespace(image_size=8)
        self.times = []

    def __call__(self, x, t, condition):
        self.times.append(float(t[0]))
        return torch.full_like(x, self.value)


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "cosine"},
        {"kind": "discrete", "steps": 100},
        {"kind": "edm", "sigma_max": 40.0},
    ],
)
def test_a_stage_before_a_truncated_one_stops_at_the_noise_of_its_level(schedule):
    """z_s of the forward process, whatever the schedule."""
    process = ProcessConfig.model_validate({"schedule": schedule}).build()
    network, angle = Known(0.3, process), 0.15 * math.pi
    start = normal((4, 3, 8, 8), rng(), torch.device("cpu"))
    stage = StageSampling(steps=40, times={"kind": "log_snr"})
    found = sample_base(network, Condition(), start, rng(), stage, NFE(), stop=0.3)
    assert 0 < len(network.times) < 40
    first = process.schedule.at(torch.tensor([1.0], dtype=torch.float64))
    alpha, sigma = float(first.alpha), float(first.sigma)
    noise = (start * math.hypot(alpha, sigma) - alpha * 0.3) / sigma
    expected = math.cos(angle) * 0.3 + math.sin(angle) * noise
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_truncated_stage_needs_a_stage_before_that_starts_with_more_noise(networks):
    stage = StageSampling(steps=4, times={"kind": "uniform", "first": 0.2})
    with pytest.raises(UserError, match=r"starts with less noise than that"):
        base_images(networks[0], "a", rng(), stage, stop=0.9)


def test_a_truncated_stage_gets_the_noise_of_the_stage_before(three, networks):
    def inputs(truncated):
        network, found = networks[1], []
        forward = network.register_forward_pre_hook(lambda _, given: found.append(given[2]))
        sampling = StageSampling(steps=2, level=0.3, truncated=truncated)
        images = three(sampling, StageSampling(steps=2)).generate(GenerationRequest(PROMPTS)).images
        forward.remove()
        return found[0], images

    (cut, images), (whole, others) = inputs(True), inputs(False)
    assert torch.equal(cut.noise_level, whole.noise_level)
    assert float(cut.low_res.std()) == pytest.approx(float(whole.low_res.std()), rel=0.15)
    assert not torch.equal(images, others)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set upsampler to one super-resolution model, or upsamplers to several"),
        ({"upsampler": "a", "upsamplers": ["b"]}, "set upsampler to one"),
        ({"upsamplers": ["a", "b"], "upsampler_sampling": [{}]}, "for 1 .* but there are 2"),
        ({"upsampler": "a", "base_sampling": {"level": 0.1}}, "base_sampling: level and truncated"),
    ],
)
def test_settings_of_stages_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        CascadeSystem.model_validate({"base": "base", **settings})


@pytest.mark.parametrize(
    ("augmentation", "settings", "message"),
    [
        (GaussianAugmentation(max_level=0.2), {"level": 0.3}, r"level 0\.3: .* up to 0\.2"),
        (BlurAugmentation(), {"level": 0.5}, r"blur is applied \(1\) or not \(0\); choose 0"),
        (BlurAugmentation(), {"truncated": True}, "truncated is of gaussian augmentation"),
    ],
)
def test_levels_that_were_not_trained_are_refused(
    cascade, networks, monkeypatch, augmentation, settings, message
):
    monkeypatch.setattr(networks[1], "augmentation", augmentation)
    generator = cascade()
    sampling = StageSampling.model_validate({"steps": 2, **settings})
    config = generator.config.model_copy(update={"upsampler_sampling": sampling})
    with pytest.raises(UserError, match=message):
        replace(generator, config=config).generate(GenerationRequest(PROMPTS))


@pytest.mark.parametrize(
    ("upsamplers", "message"),
    [
        (("first", "first"), r"system\.upsamplers\.1: enlarges images of 8 .*upsamplers\.0 gene"),
        (("upper", "first"), r"system\.upsamplers\.0: enlarges images of 16 .*system\.base gene"),
        (("base",), r"base holds a text_diffusion, not a super-resolution model"),
    ],
)
def test_stages_that_do_not_meet_in_size_are_refused(
    networks, upper, tmp_path, upsamplers, message
):
    captions = [
        f"{one} {other} {n}"
        for one in ("red", "green")
        for other in ("hand", "cook")
        for n in range(20)
    ]
    pieces = Tokenizer.train(captions, 40)
    text = {"tokenizer": pieces, "text_length": 3}
    config = networks[0].config.model_copy(update={"text_vocab": 40})
    saved(tmp_path / "base", config, **text)
    saved(tmp_path / "first", networks[1].config)
    settings = UPPER.model_copy(update={"text": UPPER.text.model_copy(update={"vocab": 40})})
    saved(tmp_path / "upper", settings, **text)
    wanted = CascadeSystem(
        base=str(tmp_path / "base"), upsamplers=[str(tmp_path / each) for each in upsamplers]
    )
    with pytest.raises(UserError, match=message):
        load_generator(wanted)


def test_a_network_trained_on_crops_works_alike_at_full_size(networks, upper):
    """Of a texture, the corrections of crops and of the whole have the same statistics."""
    whole = torch.rand((4, 3, 64, 64), generator=rng()) * 2 - 1
    crops = random_crop(whole, 16, 2, rng(1))

    def corrections(network, images):
        low, count = avg_pool2d(images, 2), len(images)
        condition = Condition(
            text=tokenize("abab"), low_res=low, noise_level=torch.full((count,), 0.1)
        )
        with torch.no_grad():
            found = network(images, torch.full((count,), 0.5), condition)
        assert found.shape == images.shape
        return found - images

    for network in (networks[1], upper):
        one, other = corrections(network, whole), corrections(network, crops)
        assert float(one.std()) == pytest.approx(float(other.std()), rel=0.05)
        assert float(one.mean()) == pytest.approx(float(other.mean()), abs=0.05 * float(one.std()))
