"""Pictures to noise and back, on a mixture whose best denoiser is known."""

import pytest
import torch
from closed_forms import Mixture, MixtureDenoiser

from models.diffusion.inversion import ddim_round_trip, encoding_times, noise_statistics
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.schedules.schedule import CosineSchedule
from models.diffusion.schedules.ve_schedule import EDMSchedule
from models.diffusion.solvers.times import uniform_log_snr_times, uniform_times


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


DATA = Mixture(numbers([-0.6, 0.2], [0.5, 0.5]), numbers(0.2, 0.3), numbers(0.4, 0.6))


@pytest.mark.parametrize(
    "schedule",
    [CosineSchedule(), EDMSchedule(), DiscreteSchedule()],
    ids=lambda config: config.kind,
)
def test_twice_the_steps_half_the_error_of_a_round_trip(schedule):
    first = 1 / 1000 if isinstance(schedule, DiscreteSchedule) else 0.0
    x = DATA.sample(64, rng())
    denoiser = MixtureDenoiser(DATA, schedule)
    errors = []
    for steps in (100, 200):
        times = uniform_log_snr_times(schedule, steps, last=first)
        trip = ddim_round_trip(denoiser, schedule, x, times, None)
        errors.append(float((trip.reconstruction - x).abs().mean()))
    assert errors[0] < 0.1
    assert 0.4 < errors[1] / errors[0] < 0.6
    # and in between it is noise: that of the data, normalised as sampling starts
    assert float(trip.noise.mean().abs()) < 0.3
    assert 0.6 < float(trip.noise.std()) < 1.3


def test_a_clean_end_is_left_out_where_an_image_holds_no_noise():
    schedule = DiscreteSchedule()
    times = uniform_times(10)
    assert torch.equal(encoding_times(schedule, times), torch.cat([times[:-1], numbers(1e-3)]))
    leading = torch.tensor([0.5, 1e-3, 0.0], dtype=torch.float64)
    assert torch.equal(encoding_times(schedule, leading), leading[:-1])
    assert torch.equal(encoding_times(CosineSchedule(), times), times)


def test_progress_counts_both_ways():
    seen = []
    schedule = CosineSchedule()
    x, times = DATA.sample(2, rng()), uniform_times(3)
    ddim_round_trip(
        MixtureDenoiser(DATA, schedule), schedule, x, times, None, lambda *done: seen.append(done)
    )
    assert seen == [(done, 6) for done in range(1, 7)]


def test_statistics_tell_noise_from_what_is_not():
    noise = torch.randn(2, 3, 32, 32, generator=rng())
    normal = noise_statistics(noise)
    size = noise[0].numel()
    assert torch.allclose(normal.mean, noise.double().flatten(1).mean(dim=1))
    assert torch.allclose(normal.std, noise.double().flatten(1).std(dim=1))
    assert float(normal.skewness.abs().max()) < 4 * (6 / size) ** 0.5
    assert float(normal.kurtosis.abs().max()) < 4 * (24 / size) ** 0.5
    assert float(normal.distance.max()) < 1.95 / size**0.5  # 0.1% of normal samples lie above
    assert float(normal.neighbours.abs().max()) < 4 / size**0.5
    uniform = noise_statistics(torch.rand(1, 3, 32, 32, generator=rng()) * 12**0.5 - 3**0.5)
    assert float(uniform.kurtosis) == pytest.approx(-1.2, abs=0.05)
    # the gap of the uniform and the normal distribution function of equal moments
    assert float(uniform.distance) == pytest.approx(0.0572, abs=0.02)
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    assert float(noise_statistics(ramp).neighbours) == pytest.approx(1.0)
