"""The classifier of noisy images: published sizes, and guidance by it."""

import pytest
import torch
from pydantic import ValidationError

from mezzotint.common.errors import UserError
from models.diffusion.classifier import NoisyClassifierConfig, class_log_probability
from models.diffusion.condition import Condition
from models.diffusion.guidance import classifier_gradient, with_classifier_guidance
from models.diffusion.parameterization import from_noise
from models.diffusion.process import ProcessConfig, denoiser
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.schedules.schedule import CosineSchedule
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.times import uniform_times
from models.diffusion.unet.network import UNetConfig

SIX = (1, 1, 2, 2, 4, 4)
PUBLISHED = {
    64: ((1, 2, 3, 4), 4, 65_438_568),
    128: ((1, 1, 2, 3, 4), 2, 42_568_040),
    256: (SIX, 2, 54_096_360),
    512: ((0.5, *SIX), 2, 54_448_360),
}
TINY = {
    **{"image_size": 8, "classes": 3, "channels": 16, "multipliers": (1, 2), "depth": 1},
    **{"attention": (4,), "head_width": 8, "groups": 4},
}
T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = NoisyClassifierConfig(**TINY).build().double()
    for parameter in model.parameters():  # blocks start silent: let all of them speak
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_classifiers_have_their_sizes(size):
    multipliers, depth, count = PUBLISHED[size]
    with torch.device("meta"):
        model = NoisyClassifierConfig(
            image_size=size, multipliers=multipliers, depth=depth, classes=1000
        ).build()
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_logits_depend_on_image_time_and_position(classifier, x):
    logits = classifier(x, T)
    assert logits.shape == (3, 3)
    assert classifier.classes == 3
    assert not torch.allclose(logits, classifier(x, T / 2))
    assert not torch.allclose(logits, classifier(x.flip(3), T))
    assert classifier.float()(x.float(), T.float()).dtype == torch.float32
    classifier.double()


def test_the_gradient_of_a_class_is_its_central_difference(classifier, x):
    label = torch.tensor([0, 1, 2])
    ask = class_log_probability(classifier, label, classifier.process.schedule)
    slope = classifier_gradient(ask, 2.0)(x, T)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    h = 1e-5
    with torch.no_grad():
        difference = (ask(x + h * direction, T) - ask(x - h * direction, T)) / (2 * h)
    assert torch.allclose((slope * direction).flatten(1).sum(1), 2 * difference, atol=1e-6)


def test_it_sees_images_of_another_schedule_as_its_own_would_have_them(classifier, x):
    other, own = DiscreteSchedule(), classifier.process.schedule
    ask = class_log_probability(classifier, torch.tensor([0, 1, 2]), other)
    noise = x.flip(0)
    time = own.inverse_log_snr(other.log_snr(T))
    logits = classifier(own.at(time).add_noise(x, noise), time).log_softmax(1)
    assert torch.allclose(ask(other.at(T).add_noise(x, noise), T), logits.diagonal(), atol=1e-6)


def test_it_guides_sampling(classifier):
    torch.manual_seed(0)
    network = UNetConfig(
        image_size=8, channels=16, multipliers=(1,), depth=1, attention=(), head_width=8, groups=8
    ).build()
    plain, schedule = denoiser(network.double()), network.process.schedule
    label = torch.arange(3)
    ask = class_log_probability(classifier, label, schedule)
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3)).double()
    near = []
    for scale in (0.0, 1.0, 4.0):
        guided = with_classifier_guidance(plain, schedule, ask, scale)
        grid = uniform_times(8, first=0.9, last=0.1)
        sampled = DDIM(eta=0.0).solve(schedule, guided, noise, grid, Condition(), None)
        with torch.no_grad():
            near.append(float(ask(sampled, torch.full((3,), 0.1).double()).mean()))
    assert near[0] < near[1] < near[2]


def test_alphas_of_nothing_do_not_stop_it(classifier, x):
    silent = DiscreteSchedule(zero_terminal_snr=True)
    ask = class_log_probability(classifier, torch.tensor([0, 1, 2]), silent)
    assert bool(ask(x, torch.ones(3).double()).isfinite().all())


def test_guidance_moves_the_noise_by_sigma_times_the_gradient(classifier, x):
    schedule = CosineSchedule()
    ask = class_log_probability(classifier, torch.tensor([0, 1, 2]), schedule)

    def denoise(x, t, condition):
        return from_noise(0 * x, x, schedule.at(t))

    moved = with_classifier_guidance(denoise, schedule, ask, 3.0)(x, T, None).noise
    wanted = -schedule.at(T).broadcast_to(x).sigma * classifier_gradient(ask, 3.0)(x, T)
    assert torch.allclose(moved, wanted, atol=1e-12)


def test_what_does_not_fit_is_refused(classifier, x):
    with pytest.raises(UserError, match="takes images of 8 x 8, got 4 x 8"):
        classifier(x[:, :, :4], T)
    for change, fault in (
        ({"image_size": 9}, "image_size 9 is not a multiple of"),
        ({"attention": (5,)}, "attention 5"),
        ({"groups": 5}, "not a multiple of groups"),
        ({"head_width": 7}, "cannot be shared by the attention's heads"),
    ):
        with pytest.raises(ValidationError, match=fault):
            NoisyClassifierConfig(**{**TINY, **change})
    assert NoisyClassifierConfig(**TINY).process == ProcessConfig()
