"""Solvers against closed forms: on gaussian data the best denoiser is known."""

from itertools import pairwise

import pytest
import torch

from models.diffusion.guidance import with_guidance
from models.diffusion.parameterization import Prediction, from_x0
from models.diffusion.schedules.schedule import CosineSchedule, LinearSchedule
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.ddpm import DDPM
from models.diffusion.solvers.times import uniform_times
from models.diffusion.thresholding import StaticThresholding

SCHEDULES = [CosineSchedule(), LinearSchedule()]
MEAN, STD = 0.3, 0.5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(schedule):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2)."""

    def denoise(x, t, condition):
        marginal = schedule.at(t)
        here = marginal.broadcast_to(x)
        variance = here.alpha**2 * STD**2 + here.sigma**2
        x0 = MEAN + here.alpha * STD**2 / variance * (x - here.alpha * MEAN)
        return from_x0(x0, x, marginal)

    return denoise


def exact(schedule, x, start, end):
    """The probability-flow ODE of gaussian data keeps (x - alpha mean) / standard deviation."""
    marginals = schedule.at(torch.tensor([start, end], dtype=x.dtype))
    spread = (marginals.alpha**2 * STD**2 + marginals.sigma**2).sqrt()
    whitened = (x - marginals.alpha[0] * MEAN) / spread[0]
    return marginals.alpha[1] * MEAN + spread[1] * whitened


def noise(count=64):
    return torch.randn(count, 1, generator=rng(), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_converges_at_its_declared_order(schedule):
    x = noise()
    solver = DDIM()
    errors = []
    for steps in (64, 128, 256):
        got = solver.solve(
            schedule,
            gaussian(schedule),
            x,
            uniform_times(steps, first=0.95, last=0.05),
            None,
            rng(),
        )
        errors.append(float((got - exact(schedule, x, 0.95, 0.05)).abs().max()))
    slopes = [torch.tensor(a / b).log2().item() for a, b in pairwise(errors)]
    assert solver.order == 1
    assert all(0.9 < slope < 1.1 for slope in slopes), (errors, slopes)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_is_inverted_by_running_it_backwards(schedule):
    x = noise()
    solver = DDIM()
    gaps = []
    for steps in (100, 200):
        down = uniform_times(steps, first=0.95, last=0.05)
        clean = solver.solve(schedule, gaussian(schedule), x, down, None, rng())
        back = solver.solve(schedule, gaussian(schedule), clean, down.flip(0), None, rng())
        gaps.append(float((back - x).abs().mean()))
    assert 0.45 < gaps[1] / gaps[0] < 0.55
    assert gaps[1] < 0.02


def test_ddim_is_deterministic_without_eta_and_leaves_the_generator_alone():
    schedule = SCHEDULES[0]
    times = uniform_times(5)
    one, generator = noise(), rng(1)
    before = generator.get_state()
    first = DDIM().solve(schedule, gaussian(schedule), one, times, None, generator)
    assert torch.equal(before, generator.get_state())
    assert torch.equal(first, DDIM().solve(schedule, gaussian(schedule), one, times, None, rng(2)))


def test_inversion_with_new_noise_is_refused():
    schedule = SCHEDULES[0]
    with pytest.raises(ValueError, match="only eta 0"):
        DDIM(eta=1.0).solve(
            schedule, gaussian(schedule), noise(), uniform_times(4).flip(0), None, rng()
        )
    with pytest.raises(ValueError, match="decreasing times"):
        DDPM().solve(schedule, gaussian(schedule), noise(), uniform_times(4).flip(0), None, rng())


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", [DDIM(eta=1.0), DDIM(eta=0.5), DDPM()])
def test_stochastic_solvers_sample_the_data_distribution(schedule, solver):
    x = torch.randn(20_000, 1, generator=rng(), dtype=torch.float64)
    got = solver.solve(schedule, gaussian(schedule), x, uniform_times(1000), None, rng(1))
    assert float(got.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(got.std()) == pytest.approx(STD, abs=0.015)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ancestral_sampling_is_ddim_with_eta_one(schedule):
    x = noise()
    times = uniform_times(10)
    one = DDIM(eta=1.0).solve(schedule, gaussian(schedule), x, times, None, rng(1))
    two = DDPM().solve(schedule, gaussian(schedule), x, times, None, rng(1))
    assert torch.allclose(one, two, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", [DDIM(eta=1.0), DDIM(eta=0.5), DDPM()])
def test_with_a_known_image_every_step_keeps_the_marginals(schedule, solver):
    def denoise(x, t, condition):
        return from_x0(torch.full_like(x, 0.7), x, schedule.at(t))

    times = uniform_times(3, first=0.9, last=0.4)
    noise = torch.randn(40_000, 1, generator=rng(), dtype=torch.float64)
    x = schedule.at(times[0]).alpha * 0.7 + schedule.at(times[0]).sigma * noise
    got = solver.solve(schedule, denoise, x, times, None, rng(1))
    here = schedule.at(times[-1])
    assert float(got.mean()) == pytest.approx(float(here.alpha * 0.7), abs=0.015)
    assert float(got.std()) == pytest.approx(float(here.sigma), rel=0.015)


def test_a_perfect_denoiser_is_followed_exactly_to_the_image():
    schedule = SCHEDULES[0]
    target = torch.randn(2, 3, 4, 4, generator=rng(3))

    def denoise(x, t, condition):
        return from_x0(target, x, schedule.at(t))

    x = torch.randn(2, 3, 4, 4, generator=rng(4))
    got = DDIM().solve(schedule, denoise, x, uniform_times(7), None, rng())
    assert torch.allclose(got, target, atol=5e-3)


def test_progress_counts_the_steps():
    seen = []
    schedule = SCHEDULES[0]
    DDIM().solve(
        schedule,
        gaussian(schedule),
        noise(),
        uniform_times(3),
        None,
        rng(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def constant(value, calls):
    def denoise(x, t, condition):
        calls.append(value)
        return Prediction(torch.full_like(x, value), torch.full_like(x, -value))

    return denoise


def test_guidance_at_one_and_zero_is_one_branch_bit_for_bit_in_one_call():
    for scale, wanted in ((1.0, 0.1), (0.0, 0.7)):
        calls = []
        wrapped = with_guidance(constant(0.1, calls), constant(0.7, calls), scale)
        x = torch.zeros(1, 2)
        assert torch.equal(wrapped(x, torch.zeros(1), None).x0, torch.full_like(x, wanted))
        assert calls == [wanted]


def test_guidance_is_linear_in_its_scale():
    x, t = torch.zeros(1, 2), torch.zeros(1)
    for scale in (0.5, 2.0, 7.0):
        pred = with_guidance(constant(0.25, []), constant(0.75, []), scale)(x, t, None)
        assert torch.allclose(pred.x0, torch.full_like(x, 0.75 - 0.5 * scale))
        assert torch.allclose(pred.noise, torch.full_like(x, -0.75 + 0.5 * scale))


def test_clamping_keeps_images_in_range_and_the_prediction_consistent():
    schedule = SCHEDULES[0]
    t = torch.full((1,), 0.4, dtype=torch.float64)
    x = torch.randn(1, 5, generator=rng(), dtype=torch.float64) * 3
    pred = StaticThresholding().wrap(constant(4.0, []), schedule)(x, t, None)
    assert float(pred.x0.max()) == 1.0
    assert torch.allclose(schedule.at(t).add_noise(pred.x0, pred.noise), x)
