"""Schedules and parameterizations."""

import math

import pytest
import torch
from pydantic import ValidationError

from models.diffusion.parameterization import from_noise, from_v, from_x0
from models.diffusion.schedules.marginal import Marginal
from models.diffusion.schedules.schedule import CosineSchedule, LinearSchedule
from models.diffusion.solvers.times import uniform_log_snr_times, uniform_times
from models.diffusion.weighting import SnrClamped

SCHEDULES = [CosineSchedule(), LinearSchedule()]
T = torch.linspace(0, 1, 257, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_preserves_variance_and_decreases_from_signal_to_noise(schedule):
    here = schedule.at(T)
    assert torch.allclose(here.alpha**2 + here.sigma**2, torch.ones_like(T), atol=1e-12)
    assert torch.allclose(here.snr.log(), schedule.log_snr(T), atol=1e-8)
    assert bool((schedule.log_snr(T).diff() < 0).all())
    assert float(here.alpha[0]) > 0.999
    assert float(here.alpha[-1]) < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_are_found_from_their_log_snr(schedule):
    assert torch.allclose(schedule.inverse_log_snr(schedule.log_snr(T)), T, atol=1e-9)


def test_the_cosine_schedule_ends_at_its_two_ratios():
    schedule = CosineSchedule(log_snr_min=-12.0, log_snr_max=9.0)
    assert float(schedule.log_snr(T[0])) == pytest.approx(9.0, abs=1e-9)
    assert float(schedule.log_snr(T[-1])) == pytest.approx(-12.0, abs=1e-9)
    middle = CosineSchedule().at(torch.tensor(0.5, dtype=torch.float64))
    assert float(middle.alpha) == pytest.approx(math.sqrt(0.5), abs=1e-12)


def test_the_linear_schedule_follows_the_thousand_betas_of_ddpm():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    discrete = (1 - betas).cumprod(0)
    schedule = LinearSchedule()
    for step in (1, 10, 100, 500, 1000):
        t = torch.tensor((step / 1000 - 1e-3) / (1 - 1e-3), dtype=torch.float64)
        wanted = float(discrete[step - 1].log())
        assert float(2 * schedule.at(t).alpha.log()) == pytest.approx(wanted, rel=0.11)


def test_inverted_ends_are_refused():
    with pytest.raises(ValidationError, match="log_snr_min"):
        CosineSchedule(log_snr_min=1.0, log_snr_max=0.0)
    with pytest.raises(ValidationError, match="beta_min"):
        LinearSchedule(beta_min=3.0, beta_max=2.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_parameterization_recovers_the_truth(schedule):
    rng = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 3, 4, 4, generator=rng, dtype=torch.float64)
    t = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64)
    marginal = schedule.at(t)
    x = marginal.add_noise(x0, noise)
    here = marginal.broadcast_to(x)
    v = here.alpha * noise - here.sigma * x0
    for pred in (from_x0(x0, x, marginal), from_noise(noise, x, marginal), from_v(v, x, marginal)):
        assert torch.allclose(pred.x0, x0, atol=1e-9)
        assert torch.allclose(pred.noise, noise, atol=1e-9)


def test_the_weight_is_the_snr_inside_its_clamps():
    alpha = torch.tensor([1.0, 0.8, 0.01])
    marginal = Marginal(alpha, (1 - alpha**2).sqrt())
    weights = SnrClamped(low=0.05, high=5.0)(marginal)
    assert weights.tolist() == pytest.approx([5.0, 0.64 / 0.36, 0.05])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_grids_run_from_noise_to_clean(schedule):
    assert uniform_times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    grid = uniform_log_snr_times(schedule, 8)
    assert (float(grid[0]), float(grid[-1])) == (1.0, 0.0)
    steps = schedule.log_snr(grid).diff()
    assert torch.allclose(steps, steps.mean().expand(8), rtol=1e-6)
