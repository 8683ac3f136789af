"""Likelihoods by the flow, beside closed forms."""

import math

import pytest
import torch
from closed_forms import Mixture, MixtureDenoiser, exact_trace

from models.diffusion.likelihood import (
    Hutchinson,
    bits_per_value,
    dequantized,
    log_likelihood,
)
from models.diffusion.schedules.schedule import (
    CosineSchedule,
    LinearSchedule,
    VPSchedule,
)
from models.diffusion.schedules.ve_schedule import EDMSchedule
from models.diffusion.solvers.times import uniform_log_snr_times, uniform_times


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


GAUSSIAN = Mixture(numbers([0.3, -0.2]), numbers(0.5), numbers(1.0))
MIXTURE = Mixture(
    numbers([-1.0, 0.2], [0.8, 0.9], [0.4, -1.0]), numbers(0.3, 0.5, 0.4), numbers(0.3, 0.5, 0.2)
)
EXPLODING = EDMSchedule()
SCHEDULES = {
    "cosine": CosineSchedule(),
    "linear": LinearSchedule(),
    "vp": VPSchedule(),
    "edm": EXPLODING,
}


def error(data, schedule, steps, *, exact_end=True):
    points = data.sample(16, rng())
    times = (
        uniform_times(steps, first=0.0, last=1.0)
        if schedule is EXPLODING
        else uniform_log_snr_times(schedule, steps, first=0.0, last=1.0)
    )
    end = schedule.at(numbers(1.0))
    made = log_likelihood(
        MixtureDenoiser(data, schedule),
        schedule,
        points,
        times,
        None,
        exact_trace,
        prior=(lambda x: data.log_density(x, end)) if exact_end else None,
    )
    assert torch.allclose(made.log_density, made.prior + made.change)
    truth = data.log_density(points, schedule.at(numbers(0.0)))
    return float((made.log_density - truth).abs().max())


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_the_likelihood_is_known_to_five_thousandths_of_a_nat(name, data):
    assert error(data, SCHEDULES[name], 256) < 5e-3


def test_the_error_of_the_likelihood_decreases_to_a_quarter_with_every_doubling():
    one, two = (error(MIXTURE, EXPLODING, steps) for steps in (128, 256))
    assert 3.6 < one / two < 4.4


def test_noise_itself_is_good_enough_an_end_where_no_signal_is_left():
    assert error(MIXTURE, SCHEDULES["cosine"], 256, exact_end=False) < 5e-3


def test_hutchinson_estimates_the_exact_trace_within_its_error():
    mix = torch.randn(6, 6, generator=rng(), dtype=torch.float64)

    def field(x):
        return torch.tanh(x @ mix) + 0.1 * x**2

    x = torch.randn(3, 6, generator=rng(1), dtype=torch.float64)
    exact = exact_trace(field, x)
    for law in ("signs", "normal"):
        sampled = torch.stack(
            [Hutchinson(x, rng(seed), distribution=law)(field, x).trace for seed in range(400)]
        )
        deviation = sampled.std(dim=0) / math.sqrt(400)
        assert bool(((sampled.mean(dim=0) - exact.trace).abs() < 3 * deviation).all())
    many = Hutchinson(x, rng(7), probes=4000)(field, x)
    assert torch.equal(many.value, exact.value)
    assert torch.allclose(many.trace, exact.trace, atol=0.2)
    by_hand = torch.stack(
        [torch.autograd.functional.jacobian(field, row).diagonal().sum() for row in x]
    )
    assert torch.allclose(exact.trace, by_hand)


def test_the_likelihood_by_hutchinson_is_within_its_error():
    schedule, points = SCHEDULES["cosine"], MIXTURE.sample(4, rng())
    times = uniform_log_snr_times(schedule, 64, first=0.0, last=1.0)

    def made(points, divergence):
        denoiser = MixtureDenoiser(MIXTURE, schedule)
        return log_likelihood(denoiser, schedule, points, times, None, divergence).log_density

    exact = made(points, exact_trace)
    many = points.repeat(300, 1)
    sampled = made(many, Hutchinson(many, rng(2))).view(300, 4)
    deviation = sampled.std(dim=0) / math.sqrt(300)
    assert bool(((sampled.mean(dim=0) - exact).abs() < 3 * deviation).all())


def test_bits_count_the_bins_of_the_levels():
    # uniform data over all 256 levels: a density of 1/2 per value of [-1, 1)
    size = 12
    density = torch.full((3,), size * math.log(0.5))
    assert bits_per_value(density, size).tolist() == pytest.approx([8.0] * 3)
    levels = torch.arange(256.0).repeat(40)
    spread = dequantized(levels, rng())
    assert float(spread.min()) >= -1
    assert float(spread.max()) <= 1
    assert torch.equal(((spread.double() + 1) * 128).floor(), levels.double())


def test_the_likelihood_counts_its_steps_and_refuses_decreasing_times():
    schedule, points, seen = SCHEDULES["cosine"], GAUSSIAN.sample(2, rng()), []
    denoiser = MixtureDenoiser(GAUSSIAN, schedule)
    log_likelihood(
        denoiser,
        schedule,
        points,
        uniform_times(3, first=0.0, last=1.0),
        None,
        exact_trace,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(ValueError, match="increasing"):
        log_likelihood(denoiser, schedule, points, uniform_times(3), None, exact_trace)
