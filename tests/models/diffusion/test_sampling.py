"""Sampling as a setting: every solver on every schedule and grid, guidance, and counted calls."""

import math
from typing import get_args

import pytest
import torch
from closed_forms import Mixture, MixtureDenoiser
from pydantic import TypeAdapter

from mezzotint.common.errors import UserError
from models.diffusion.guidance import classifier_gradient, with_guidance, with_mean_gradient
from models.diffusion.parameterization import Prediction, from_noise
from models.diffusion.sampling import (
    NFE,
    DiffusionSampling,
    count_classifier_nfe,
    count_nfe,
    memoize_last,
    scale_initial_noise,
)
from models.diffusion.schedules.discrete import DiscreteSchedule, SqrtLinearBetasConfig
from models.diffusion.schedules.schedule import CosineSchedule, LinearSchedule
from models.diffusion.schedules.ve_schedule import EDMSchedule, VESchedule
from models.diffusion.solvers.analytic_dpm import noise_moments
from models.diffusion.solvers.config import SolverConfig
from models.diffusion.solvers.ddpm import DDPM
from models.diffusion.solvers.grids import TimeGridConfig, noisy_end
from models.diffusion.solvers.times import uniform_log_snr_times
from models.diffusion.thresholding import StaticThresholding


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def kinds(union):
    return [member.model_fields["kind"].default for member in get_args(get_args(union)[0])]


ALL = Mixture(numbers([-0.6, 0.2], [0.5, 0.5]), numbers(0.1, 0.2), numbers(0.4, 0.6))
COSINE = CosineSchedule()
SCHEDULES = {
    "cosine": COSINE,
    "linear": LinearSchedule(),
    "discrete": DiscreteSchedule(),
    "ve": VESchedule(),
    "edm": EDMSchedule(),
}
X = torch.randn(64, 2, generator=rng(), dtype=torch.float64)
T = torch.linspace(0.1, 0.9, 64, dtype=torch.float64)


def sampling(**settings):
    return DiffusionSampling.model_validate(settings)


def times_of(settings, schedule):
    return settings.sampler_run(free, free, schedule).times


def sampled(settings, schedule, denoiser, log_probability=None):
    run = settings.sampler_run(denoiser, denoiser, schedule, log_probability)
    return run.solve(X, None, rng(1))


@pytest.mark.parametrize("schedule", ["cosine", "discrete", "edm"])
@pytest.mark.parametrize("kind", kinds(SolverConfig))
def test_every_solver_samples_the_mixture_on_every_schedule(kind, schedule):
    schedule = SCHEDULES[schedule]
    denoiser = MixtureDenoiser(ALL, schedule)
    settings = sampling(solver={"kind": kind}, steps=24, times={"kind": "karras"})
    if kind == "analytic_dpm":
        times = settings.time_grid.build(schedule, settings.steps)
        moments = noise_moments(denoiser, schedule, ALL.sample(200, rng(2)), times, None, rng())
        settings = sampling(
            **settings.model_dump() | {"solver": {"kind": kind, "moments": moments}}
        )
    points = sampled(settings, schedule, denoiser)
    # every point lies on one of the two gaussians, and about their shares on each
    log_joint = ALL.log_joint(points, COSINE.at(numbers(0.0)))
    far = (points[:, None] - ALL.means).norm(dim=-1) / ALL.stds
    assert float(far.min(dim=1).values.max()) < 6.5
    assert 0.2 < float((log_joint.argmax(dim=1) == 0).double().mean()) < 0.6


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", kinds(TimeGridConfig))
def test_every_grid_decreases_from_noise_to_clean_in_so_many_steps(kind, schedule):
    settings = sampling(times={"kind": kind}, steps=12)
    if kind == "ldm":
        settings = sampling(times={"kind": kind}, steps=10)
    if kind in ("trailing", "leading", "ldm") and schedule != "discrete":
        with pytest.raises(UserError, match=f"times of kind {kind} count discrete steps"):
            times_of(settings, SCHEDULES[schedule])
        return
    times = times_of(settings, SCHEDULES[schedule])
    assert times.shape == (settings.steps + 1,)
    assert float(times[-1]) == (1 / 1000 if kind == "ldm" else 0)
    assert bool((times.diff() < 0).all())


def test_ddim_of_latent_diffusion_is_its_formula():
    schedule = DiscreteSchedule(betas=SqrtLinearBetasConfig())
    kept = (1 - schedule.betas.betas(1000)).cumprod(0)
    # released code: uniform steps + 1, and the alpha before the first of them is that of step 0
    now = torch.arange(0, 1000, 100) + 1
    before = torch.cat([kept[:1], kept[now[:-1]]])
    x = start = torch.randn((2, 3), generator=rng(), dtype=torch.float64)
    for step in reversed(range(10)):
        here, there, noise = kept[now[step]], before[step], x.tanh()
        x0 = (x - (1 - here).sqrt() * noise) / here.sqrt()
        x = there.sqrt() * x0 + (1 - there).sqrt() * noise

    def denoise(x, t, condition):
        return from_noise(x.tanh(), x, schedule.at(t))

    settings = sampling(times={"kind": "ldm"}, steps=10, thresholding={"kind": "none"})
    run = settings.sampler_run(denoise, denoise, schedule)
    found = run.solver.solve(schedule, run.denoiser, start, run.times, None, rng())
    torch.testing.assert_close(found, x, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["leading", "ldm"])
def test_zero_terminal_snr_is_sampled_from_its_last_step(kind):
    schedule = DiscreteSchedule(zero_terminal_snr=True)
    settings = sampling(times={"kind": kind}, steps=10)
    with pytest.raises(UserError, match=r"zero terminal SNR .* choose trailing"):
        times_of(settings, schedule)
    assert float(times_of(sampling(times={"kind": "trailing"}, steps=10), schedule)[0]) == 1


def test_solvers_that_need_short_last_steps_get_them():
    assert sampling().time_grid.kind == "uniform"
    assert sampling(solver={"kind": "ddpm"}).time_grid.kind == "uniform"
    assert sampling(solver={"kind": "heun"}).time_grid.kind == "log_snr"
    assert sampling(solver={"kind": "heun"}, times={"kind": "karras"}).time_grid.kind == "karras"


def test_equal_log_snr_ends_at_the_first_discrete_step():
    schedule = SCHEDULES["discrete"]
    times = times_of(sampling(times={"kind": "log_snr"}, steps=9), schedule)
    assert noisy_end(schedule) == 1 / 1000
    assert noisy_end(COSINE) == 0
    wanted = uniform_log_snr_times(schedule, 8, last=1 / 1000)
    assert torch.equal(times, torch.cat([wanted, numbers(0.0)]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"solver": {"kind": "unipc"}}, "sampling.solver: unipc needs some signal"),
        (
            {"solver": {"kind": "heun"}, "times": {"kind": "trailing"}, "steps": 5},
            "heun needs some",
        ),
        ({"times": {"kind": "karras"}}, "need some signal at time 1"),
        ({"times": {"kind": "trailing"}, "steps": 11}, "has 10 steps, so 11 cannot"),
        ({"times": {"kind": "log_snr", "first": 0.5}, "steps": 1}, "need 2 steps"),
        ({"solver": {"kind": "analytic_dpm"}}, "needs some signal"),
    ],
)
def test_what_does_not_suit_a_schedule_is_refused_before_a_step(settings, message):
    silent = DiscreteSchedule(steps=10, zero_terminal_snr=True)
    with pytest.raises(UserError, match=message):
        times_of(sampling(**settings), silent)


def test_analytic_dpm_needs_a_moment_for_each_step():
    with pytest.raises(UserError, match="needs moments"):
        times_of(sampling(solver={"kind": "analytic_dpm"}), COSINE)
    with pytest.raises(UserError, match="2 steps need as many moments, got 1"):
        times_of(sampling(solver={"kind": "analytic_dpm", "moments": [0.5]}, steps=2), COSINE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"interval": [0.5, 0.2]}, "interval"),
        ({"times": {"kind": "uniform", "first": 0.2, "last": 0.3}}, "last must lie below first"),
        ({"solver": {"kind": "rk4"}}, "ddpm"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sampling(**settings)


def conditional(x, t, condition):
    return MixtureDenoiser(ALL.only(1), COSINE)(x, t, condition)


def free(x, t, condition):
    return MixtureDenoiser(ALL, COSINE)(x, t, condition)


@pytest.mark.parametrize(
    ("settings", "calls"),
    [
        ({}, 6),
        ({"guidance": 0.0}, 6),
        ({"guidance": 2.0}, 12),
        ({"guidance": 2.0, "rescale": 0.7}, 12),
        ({"guidance": 2.0, "interval": [0.4, 0.9]}, 6 + 3),
        ({"solver": {"kind": "heun"}}, 12),
        ({"solver": {"kind": "predictor_corrector", "corrections": 2}}, 18),
        ({"solver": {"kind": "dpm_solver_3"}}, 6),
    ],
)
def test_calls_of_the_network_are_counted(settings, calls):
    seen = NFE()
    settings = sampling(steps=6, **settings)
    run = settings.sampler_run(count_nfe(conditional, seen), count_nfe(free, seen), COSINE)
    run.solve(X, None, rng())
    assert seen == NFE(network=calls)


def test_the_denoiser_is_guided_then_thresholded():
    settings = sampling(guidance=3.0)
    got = settings.guided_denoiser(conditional, free, COSINE)(X, T, None)
    wanted = StaticThresholding().wrap(with_guidance(conditional, free, 3.0), COSINE)(X, T, None)
    assert torch.equal(got.x0, wanted.x0)
    assert torch.equal(got.noise, wanted.noise)
    plain = sampling(thresholding={"kind": "none"}).guided_denoiser(conditional, free, COSINE)(
        X, T, None
    )
    assert torch.equal(plain.x0, conditional(X, T, None).x0)
    dynamic = sampling(guidance=3.0, thresholding={"kind": "dynamic"})
    assert float(dynamic.guided_denoiser(conditional, free, COSINE)(X, T, None).x0.abs().max()) <= 1


def classify(x, t):
    return ALL.log_class(x, COSINE.at(t))[:, 1]


def test_a_classifier_moves_the_mean_of_ancestral_steps_and_the_prediction_of_others():
    seen = NFE()
    counting = count_classifier_nfe(classify, seen)
    settings = sampling(solver={"kind": "ddpm"}, steps=4, classifier_scale=2.0)
    open_ended = {"thresholding": {"kind": "none"}}
    settings = sampling(**settings.model_dump() | open_ended)
    got = sampled(settings, COSINE, free, counting)
    times = times_of(settings, COSINE)
    guided = with_mean_gradient(free, classifier_gradient(classify, 2.0))
    assert torch.equal(got, DDPM().solve(COSINE, guided, X, times, None, rng(1)))
    assert seen.classifier == 4
    # with the true classifier at scale 1 all points are the class's
    settings = sampling(solver={"kind": "heun"}, steps=40, classifier_scale=1.0, **open_ended)
    points = sampled(settings, COSINE, free, counting)
    assert float((points - ALL.means[1]).norm(dim=1).max()) < 5.5 * 0.2


def test_the_same_arguments_twice_in_a_row_are_one_call():
    seen = NFE()
    asked = memoize_last(count_nfe(conditional, seen))
    first = asked(X, T, None)
    assert asked(X, T, None) is first
    assert seen.network == 1
    asked(X, T, "another")
    assert seen.network == 2


@pytest.mark.parametrize(("schedule", "deviation"), [("cosine", 1.0), ("edm", math.hypot(1, 80))])
def test_noise_starts_with_the_deviation_of_normalised_data(schedule, deviation):
    assert torch.allclose(scale_initial_noise(X, SCHEDULES[schedule], 1.0), X * deviation)
    assert torch.equal(scale_initial_noise(X.float(), COSINE, 1.0), X.float())


def test_sampling_settings_are_read_back_as_written():
    settings = sampling(solver={"kind": "heun", "churn": {"amount": 3}}, interval=[0.1, 0.7])
    again = TypeAdapter(DiffusionSampling).validate_json(settings.model_dump_json())
    assert again == settings
    assert isinstance(free(X, T, None), Prediction)
