"""One diffusion model by itself."""

from dataclasses import dataclass

import pytest
import torch
from models.systems.cascade import StageSampling, draw
from models.systems.diffusion import Diffusion
from torch import nn

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.process import Process, ProcessConfig
from models.diffusion.sampling import NFE, DiffusionSampling
from models.diffusion.schedules.discrete import DiscreteScheduleConfig
from models.diffusion.solvers.times import uniform_log_snr_times
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import LowResolutionConfig, UNetConfig

TEXT = torch.tensor([[3, 4, 0], [5, 0, 0]])
SMALL = {"image_size": 8, "channels": 8, "multipliers": (1, 2), "depth": 1, "groups": 4}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def shaken(network):
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
    return shaken(config.build())


@pytest.fixture(scope="module")
def captioned():
    torch.manual_seed(0)
    config = TextDiffusionConfig(
        image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=9, text_length=3
    )
    return Diffusion(shaken(config.build()))


@pytest.fixture(scope="module")
def classes():
    return Diffusion(unet(classes=4, null_class=True))


def sampling(**settings):
    return DiffusionSampling.model_validate({"steps": 4} | settings)


def test_it_draws_as_the_base_of_a_cascade_draws(captioned):
    noise = torch.randn((2, 3, 8, 8), generator=rng(5))
    got = captioned.sample(Condition(text=TEXT), noise, rng(), sampling=sampling(guidance=2.0))
    wanted = draw(captioned.network, TEXT, rng(5), sampling=StageSampling(steps=4, guidance=2.0))
    assert torch.equal(got.images, wanted)
    assert got.calls == NFE(network=8)


def test_a_picture_of_a_seed_does_not_depend_on_what_is_drawn_beside_it(classes):
    one = classes.sample(
        Condition(label=torch.tensor([2])), classes.noise([7]), rng(), sampling=sampling()
    )
    three = classes.sample(
        Condition(label=torch.tensor([1, 2, 0])), classes.noise([6, 7, 8]), rng(),
        sampling=sampling(),
    )  # fmt: skip
    assert torch.allclose(one.images[0], three.images[1], atol=1e-5)
    assert not torch.allclose(three.images[0], three.images[1], atol=1e-2)


def test_guidance_leads_away_from_no_class_or_from_a_negative_caption(classes, captioned):
    noise = classes.noise([0, 1])
    label = torch.tensor([0, 3])
    untold = sampling(guidance=0.0)
    got = classes.sample(Condition(label=label), noise, rng(), sampling=untold)
    null = Condition(label=torch.tensor([4, 4]))
    assert torch.equal(got.images, classes.sample(null, noise, rng(), sampling=sampling()).images)
    away = Condition(text=TEXT.flip(0))
    got = captioned.sample(Condition(text=TEXT), noise, rng(), sampling=untold, negative=away)
    wanted = captioned.sample(away, noise, rng(), sampling=sampling())
    assert torch.equal(got.images, wanted.images)


def test_guidance_without_an_unconditional_side_is_refused():
    only = Diffusion(unet(classes=4))
    cond = Condition(label=torch.tensor([1]))
    with pytest.raises(UserError, match="null_class"):
        only.sample(cond, only.noise([0]), rng(), sampling=sampling(guidance=2.0))


class Shrinks(nn.Module):
    """The best denoiser of standard normal data: every likelihood is known."""

    def __init__(self):
        super().__init__()
        self.process = ProcessConfig(
            prediction_type="noise", schedule=DiscreteScheduleConfig()
        ).build()
        self.config = UNetConfig(**SMALL, attention=(), head_width=4)

    def forward(self, x, t, cond):
        return self.process.schedule.at(t).like(x).sigma * x


@dataclass(frozen=True)
class Brightness:
    """Thinks that bright pictures are of class 1."""

    process: Process
    classes: int = 2

    def __call__(self, x, t):
        mean = 8 * x.flatten(1).mean(dim=1)
        return torch.stack([-mean, mean], dim=1)


def test_a_classifier_steers_to_its_class_and_its_calls_are_counted():
    network = Shrinks()
    plain = Diffusion(network, Brightness(network.process))
    noise, steered = plain.noise([0, 1]), sampling(steps=6, classifier_scale=3.0)
    drawn = [
        plain.sample(Condition(label=torch.tensor([label] * 2)), noise, rng(), sampling=steered)
        for label in (0, 1)
    ]
    assert bool((drawn[1].images.mean((1, 2, 3)) > drawn[0].images.mean((1, 2, 3))).all())
    assert drawn[0].calls == NFE(network=6, classifier=6)
    with pytest.raises(UserError, match="classifier and a class"):
        plain.sample(Condition(), noise, rng(), sampling=steered)
    assert plain.classes == 2


def test_moments_shown_go_from_noise_to_the_picture(captioned):
    seen = []
    noise = captioned.noise([3])
    got = captioned.sample(
        Condition(text=TEXT[:1]), noise, rng(), sampling=sampling(), watch=seen.append
    )
    assert [moment.done for moment in seen] == [0, 1, 2, 3, 4]
    assert [round(moment.time, 2) for moment in seen] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert torch.equal(seen[0].x, noise)
    assert torch.equal(seen[-1].guess.clamp(-1, 1), got.images)
    assert float(seen[0].guess.abs().max()) <= 1


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: unet(low_resolution=LowResolutionConfig(size=4)), "enlarges pictures"),
        (lambda: unet(image_channels=4), "draws latents"),
    ],
)
def test_what_does_not_draw_pictures_by_itself_is_refused(network, message):
    with pytest.raises(UserError, match=message):
        Diffusion(network()).check()


def test_there_and_back_returns_the_picture_with_enough_steps(captioned):
    images = torch.rand((2, 3, 8, 8), generator=rng(2)) * 2 - 1
    errors = []
    for steps in (40, 160):
        settings = sampling(steps=steps, times={"kind": "log_snr"}, thresholding={"kind": "none"})
        trip = captioned.there_and_back(images, Condition(text=TEXT), sampling=settings)
        errors.append(float((trip.back - images).square().mean()))
    assert errors[1] < errors[0] / 4
    noise = trip.noise
    again = captioned.sample(Condition(text=TEXT), noise, rng(), sampling=settings)
    assert float((again.images - images).square().mean()) < 2 * errors[1] + 1e-6


def test_analytic_moments_are_estimated_on_pictures(captioned):
    images = torch.rand((8, 3, 8, 8), generator=rng(2)) * 2 - 1
    cond = Condition(text=TEXT.repeat(4, 1))
    settings = sampling(solver={"kind": "analytic_dpm"})
    ready = captioned.moments(images, cond, rng(), settings)
    assert len(ready.solver.moments) == 4
    got = captioned.sample(cond, captioned.noise(range(8)), rng(), sampling=ready)
    assert bool(got.images.isfinite().all())


def test_the_likelihood_of_normal_data_is_the_normal_one():
    diffusion = Diffusion(Shrinks())
    x = torch.randn((3, 3, 8, 8), generator=rng(4), dtype=torch.float64)
    times = uniform_log_snr_times(diffusion.schedule, 64, last=1e-3)
    got = diffusion.likelihood(x, Condition(), rng(), times=times)
    wanted = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(dim=(1, 2, 3))
    assert torch.allclose(got.log_density, wanted, rtol=3e-3)
