"""One diffusion model by itself."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from mezzotint.common.errors import UserError
from mezzotint.inference.cascade import sample_base
from mezzotint.inference.config import DiffusionSystem, StageSampling
from mezzotint.inference.diffusion import DiffusionGenerator
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.images import to_bytes
from mezzotint.inference.latent_space import check_generates_alone
from mezzotint.inference.runtime import Runtime
from models.diffusion.condition import Condition
from models.diffusion.process import Process, ProcessConfig
from models.diffusion.sampling import NFE, DiffusionSampling
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.solvers.times import uniform_log_snr_times
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.conditions import LowResolutionConfig
from models.diffusion.unet.network import UNetConfig

TEXT = torch.tensor([[3, 4, 0], [5, 0, 0]])
SMALL = {"image_size": 8, "channels": 8, "multipliers": (1, 2), "depth": 1, "groups": 4}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def perturbed(network):
    """What starts at zero would make every network the same blank one."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=rng(1)))
    return network.eval()


def unet(**settings):
    torch.manual_seed(0)
    config = UNetConfig(
        **SMALL, attention=(), head_width=4, **{"process": ProcessConfig()} | settings
    )
    return perturbed(config.build())


@pytest.fixture(scope="module")
def captioned():
    torch.manual_seed(0)
    config = TextDiffusionConfig(
        image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=9, text_length=3
    )
    return generator(perturbed(config.build()), text=tokens)


@pytest.fixture(scope="module")
def classes():
    return generator(unet(classes=4, null_class=True))


def generator(network, classifier=None, text=None):
    runtime = Runtime.of(precision="fp32")
    return DiffusionGenerator(DiffusionSystem(model="m"), network, runtime, text, classifier)


def tokens(cond, captions):
    """The text conditioning of captions that are the indices of `TEXT`."""
    return replace(cond, text=torch.stack([TEXT[int(caption or 0)] for caption in captions]))


def under(generator, **settings):
    """The generator under other sampling."""
    sampling = DiffusionSampling.model_validate({"steps": 4} | settings)
    return replace(generator, config=generator.config.model_copy(update={"sampling": sampling}))


def sample(generator, cond, noise, *, nfe=None, negative=None, callback=None, **settings):
    nfe, chosen = NFE() if nfe is None else nfe, under(generator, **settings)
    return chosen.sample(cond, noise, rng(), nfe, negative=negative, callback=callback)


def noise(count, size=8):
    return torch.randn((count, 3, size, size), generator=rng(8))


def test_it_samples_as_the_base_of_a_cascade_samples(captioned):
    start, nfe = torch.randn((2, 3, 8, 8), generator=rng(5)), NFE()
    found = sample(captioned, Condition(text=TEXT), start, nfe=nfe, guidance=2.0)
    stage = StageSampling(steps=4, guidance=2.0)
    expected = sample_base(captioned.network, Condition(text=TEXT), start, rng(), stage, NFE())
    assert torch.equal(found, expected)
    assert nfe == NFE(network=8)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "euler_ancestral", "dpm_solver_pp_sde"])
def test_an_image_does_not_depend_on_what_is_generated_with_it(classes, solver):
    chosen = under(classes, solver={"kind": solver})
    three = tuple(Prompt(label=label) for label in (1, 2, 0))
    whole = chosen.generate(GenerationRequest(three, number=2)).images
    alone = chosen.generate(GenerationRequest(three[1:2], number=2)).images
    assert int((whole[1:2].int() - alone.int()).abs().max()) <= 1
    assert not torch.equal(whole[1, 0], whole[1, 1])
    assert not torch.equal(whole[0], whole[1])


def test_given_noise_is_where_sampling_starts(classes):
    start = noise(2)
    request = GenerationRequest((Prompt(label=1), Prompt(label=2)), number=2, noise=start)
    found = under(classes).generate(request).images
    label = torch.tensor([1, 1])
    wanted = to_bytes(sample(classes, Condition(label=label), start))
    assert int((found[0].int() - wanted.int()).abs().max()) <= 1


def test_guidance_leads_away_from_the_null_class_or_from_a_negative_caption(classes, captioned):
    start, label = noise(2), torch.tensor([0, 3])
    found = sample(classes, Condition(label=label), start, guidance=0.0)
    null = Condition(label=torch.tensor([4, 4]))
    assert torch.equal(found, sample(classes, null, start))
    away = Condition(text=TEXT.flip(0))
    found = sample(captioned, Condition(text=TEXT), start, guidance=0.0, negative=away)
    assert torch.equal(found, sample(captioned, away, start))


def test_guidance_without_an_unconditional_side_is_refused():
    only = generator(unet(classes=4))
    with pytest.raises(UserError, match="null_class"):
        sample(only, Condition(label=torch.tensor([1])), noise(1), guidance=2.0)


class Shrinks(nn.Module):
    """The best denoiser of standard normal data: every likelihood is known."""

    def __init__(self):
        super().__init__()
        self.process = ProcessConfig(prediction_type="noise", schedule=DiscreteSchedule()).build()
        self.config = UNetConfig(**SMALL, attention=(), head_width=4)

    def forward(self, x, t, cond):
        return self.process.schedule.at(t).broadcast_to(x).sigma * x


@dataclass(frozen=True)
class Brightness:
    """Classifies bright images as class 1."""

    process: Process
    classes: int = 2

    def __call__(self, x, t):
        mean = 8 * x.flatten(1).mean(dim=1)
        return torch.stack([-mean, mean], dim=1)


def test_a_classifier_guides_to_its_class_and_its_calls_are_counted():
    network = Shrinks()
    guided = generator(network, Brightness(network.process))
    start, settings = noise(2), {"steps": 6, "classifier_scale": 3.0}
    nfe = NFE()
    images = [
        sample(guided, Condition(label=torch.tensor([label] * 2)), start, nfe=nfe, **settings)
        for label in (0, 1)
    ]
    assert bool((images[1].mean((1, 2, 3)) > images[0].mean((1, 2, 3))).all())
    assert nfe == NFE(network=12, classifier=12)
    with pytest.raises(UserError, match="classifier and a class"):
        sample(guided, Condition(), start, **settings)
    assert guided.classes == 2
    request = GenerationRequest((Prompt(label=0), Prompt(label=1)), number=2)
    result = under(guided, **settings).generate(request)
    assert result.nfe == NFE(network=6, classifier=6)
    assert result.images[1].float().mean() > result.images[0].float().mean()


def test_a_callback_sees_the_steps_from_noise_to_the_image(captioned):
    steps, start = [], noise(1)
    found = sample(captioned, Condition(text=TEXT[:1]), start, callback=steps.append)
    assert [step.done for step in steps] == [0, 1, 2, 3, 4]
    assert [round(step.time, 2) for step in steps] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert torch.equal(steps[0].x, start)
    assert torch.equal(steps[-1].denoised.clamp(-1, 1), found)
    assert float(steps[0].denoised.abs().max()) <= 1


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: unet(low_resolution=LowResolutionConfig(size=4)), "upsamples images"),
        (lambda: unet(image_channels=4), "generates latents"),
    ],
)
def test_what_does_not_generate_images_by_itself_is_refused(network, message):
    with pytest.raises(UserError, match=message):
        check_generates_alone(network(), "m")


def test_inversion_and_reconstruction_return_the_image_with_enough_steps(captioned):
    images = torch.rand((2, 3, 8, 8), generator=rng(2)) * 2 - 1
    errors, prompts = [], (Prompt("0"), Prompt("1"))
    for steps in (40, 160):
        settings = {
            "steps": steps, "times": {"kind": "log_snr"}, "thresholding": {"kind": "none"}
        }  # fmt: skip
        trip = under(captioned, **settings).invert(images, prompts)
        errors.append(float((trip.reconstruction - images).square().mean()))
    assert errors[1] < errors[0] / 4
    again = sample(captioned, Condition(text=TEXT), trip.noise, **settings)
    assert float((again - images).square().mean()) < 2 * errors[1] + 1e-6


def test_analytic_moments_are_estimated_on_images(captioned):
    images = torch.rand((8, 3, 8, 8), generator=rng(2)) * 2 - 1
    prompts = [Prompt(str(index % 2)) for index in range(8)]
    chosen = under(captioned, solver={"kind": "analytic_dpm"})
    ready = chosen.with_analytic_moments(images, prompts, rng())
    assert len(ready.config.sampling.solver.moments) == 4
    found = ready.sample(Condition(text=TEXT.repeat(4, 1)), noise(8), rng(), NFE())
    assert bool(found.isfinite().all())


def test_the_likelihood_of_normal_data_is_the_normal_one():
    normal = generator(Shrinks())
    x = torch.randn((3, 3, 8, 8), generator=rng(4), dtype=torch.float64)
    times = uniform_log_snr_times(normal.schedule, 64, last=1e-3)
    found = normal.log_likelihood(x, [Prompt()] * 3, rng(), times=times)
    wanted = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(dim=(1, 2, 3))
    assert torch.allclose(found.log_density, wanted, rtol=3e-3)
