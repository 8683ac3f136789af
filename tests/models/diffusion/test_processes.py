"""All schedules over one marginal, grids of times over them, and conversions of predictions."""

import math
from itertools import pairwise

import pytest
import torch
from closed_forms import Mixture, MixtureDenoiser, score
from pydantic import TypeAdapter, ValidationError

from models.diffusion.parameterization import (
    Prediction,
    from_noise,
    from_v,
    from_x0,
    to_noise,
    to_v,
    to_x0,
)
from models.diffusion.process import ProcessConfig
from models.diffusion.schedules.discrete import (
    CosineBetasConfig,
    DiscreteSchedule,
    LinearBetasConfig,
    SqrtLinearBetasConfig,
)
from models.diffusion.schedules.schedule import (
    CosineSchedule,
    LinearSchedule,
    ScheduleConfig,
    VPSchedule,
)
from models.diffusion.schedules.ve_schedule import EDMSchedule, VESchedule
from models.diffusion.solvers.analytic_dpm import AnalyticDPM, noise_moments
from models.diffusion.solvers.churn import Churn
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.ddpm import DDPM
from models.diffusion.solvers.dpm_solver_pp_sde import DPMSolverPPSDE
from models.diffusion.solvers.euler import Euler
from models.diffusion.solvers.euler_ancestral import EulerAncestral
from models.diffusion.solvers.heun import Heun
from models.diffusion.solvers.predictor_corrector import PredictorCorrector
from models.diffusion.solvers.solver import time_grid
from models.diffusion.solvers.times import (
    karras_times,
    leading_times,
    quadratic_times,
    trailing_times,
    uniform_log_snr_times,
    uniform_times,
)
from models.diffusion.solvers.unipc import UniPC

SCHEDULES = {
    "cosine": CosineSchedule(),
    "linear": LinearSchedule(),
    "vp": VPSchedule(),
    "ve": VESchedule(),
    "edm": EDMSchedule(),
    "discrete linear": DiscreteSchedule(betas=LinearBetasConfig()),
    "discrete sqrt-linear": DiscreteSchedule(betas=SqrtLinearBetasConfig()),
    "discrete cosine": DiscreteSchedule(betas=CosineBetasConfig()),
}
PRESERVING = [name for name in SCHEDULES if name not in {"ve", "edm"}]
T = torch.linspace(0, 1, 257, dtype=torch.float64)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_decreases_in_log_snr_and_finds_its_times_again(name):
    schedule = SCHEDULES[name]
    inside = T[1:] if name.startswith("discrete") else T
    ratios = schedule.log_snr(inside)
    here = schedule.at(inside)
    assert bool((ratios.diff() < 0).all())
    assert torch.allclose(here.log_snr, ratios, atol=1e-8)
    assert torch.allclose(schedule.inverse_log_snr(ratios), inside, atol=1e-9)
    single = schedule.at(inside.float())
    assert single.alpha.dtype is torch.float32
    assert torch.allclose(single.alpha.double(), here.alpha, atol=1e-5)


@pytest.mark.parametrize("name", PRESERVING)
def test_schedules_that_preserve_variance_do(name):
    here = SCHEDULES[name].at(T)
    assert torch.allclose(here.alpha**2 + here.sigma**2, torch.ones_like(T), atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_written_and_read_by_its_kind(name):
    union = TypeAdapter(ScheduleConfig)
    assert union.validate_json(union.dump_json(SCHEDULES[name])) == SCHEDULES[name]


def test_ends_in_the_wrong_order_and_v_without_preserved_variance_are_refused():
    for config in (VESchedule, EDMSchedule):
        with pytest.raises(ValidationError, match="sigma_min"):
            config(sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValidationError, match="beta_min"):
        VPSchedule(beta_min=2.0, beta_max=1.0)
    with pytest.raises(ValidationError, match="preserves variance"):
        ProcessConfig(schedule=EDMSchedule(), prediction_type="v")


def test_exploding_schedules_run_between_their_levels():
    ends = SCHEDULES["ve"].at(numbers(0.0, 0.5, 1.0)).sigma
    assert torch.allclose(ends, numbers(0.01, math.sqrt(0.5), 50.0))
    ends = SCHEDULES["edm"].at(numbers(0.0, 1.0)).sigma
    assert torch.allclose(ends, numbers(0.002, 80.0))


def test_the_vp_process_solves_its_equation():
    """d ln alpha / ds = -beta(s) / 2 with linear beta (arXiv 2011.13456, eq. 11)."""
    config, schedule, h = VPSchedule(), SCHEDULES["vp"], 1e-5
    t = numbers(0.1, 0.5, 0.9)
    slope = (schedule.at(t + h).alpha.log() - schedule.at(t - h).alpha.log()) / (2 * h)
    s = config.first + (1 - config.first) * t
    beta = config.beta_min + (config.beta_max - config.beta_min) * s
    assert torch.allclose(slope / (1 - config.first), -beta / 2, rtol=1e-6)


def test_discrete_steps_are_the_products_of_their_betas_and_begin_with_the_image():
    config = DiscreteSchedule(betas=LinearBetasConfig(first=0.1, last=0.4), steps=4)
    here = config.at(torch.arange(5, dtype=torch.float64) / 4)
    assert torch.allclose(here.alpha**2, numbers(1, 0.9, 0.9 * 0.8, 0.9 * 0.56, 0.9 * 0.56 * 0.6))
    assert float(here.sigma[0]) == 0.0


def test_zero_terminal_snr_keeps_the_first_step_and_ends_in_noise():
    plain, moved = DiscreteSchedule(), DiscreteSchedule(zero_terminal_snr=True)
    assert float(moved.at(numbers(1.0)).alpha) == 0.0
    assert float(moved.at(numbers(1.0)).sigma) == 1.0
    assert float(moved.log_snr(numbers(1.0))) == -math.inf
    assert torch.allclose(moved.at(numbers(1e-3)).alpha, plain.at(numbers(1e-3)).alpha)
    assert torch.allclose(moved.inverse_log_snr(moved.log_snr(numbers(0.9995))), numbers(0.9995))


@pytest.mark.parametrize("name", PRESERVING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_predictions_convert_into_each_other_and_back(name, dtype):
    marginal = SCHEDULES[name].at(torch.linspace(0.1, 0.7, 5, dtype=dtype))
    x0, noise = torch.randn(2, 5, 3, generator=rng(), dtype=dtype)
    x = marginal.add_noise(x0, noise)
    truth = Prediction(x0, noise)
    tolerance = 1e-6 if dtype is torch.float64 else 2e-4
    for to, read in ((to_x0, from_x0), (to_noise, from_noise), (to_v, from_v)):
        back = read(to(truth, marginal), x, marginal)
        for to_other, read_other in ((to_x0, from_x0), (to_noise, from_noise), (to_v, from_v)):
            again = read_other(to_other(back, marginal), x, marginal)
            assert float((again.x0 - x0).abs().max()) < tolerance
            assert float((again.noise - noise).abs().max()) < tolerance


def test_the_score_is_the_gradient_of_the_log_density():
    data = Mixture(numbers([-1.0, 0.0], [1.0, 0.5]), numbers(0.3, 0.4), numbers(0.4, 0.6))
    for name, schedule in SCHEDULES.items():
        x = torch.randn(6, 2, generator=rng(), dtype=torch.float64).requires_grad_(True)
        t = torch.full((6,), 0.4, dtype=torch.float64)
        here = schedule.at(t)
        (wanted,) = torch.autograd.grad(data.log_density(x, here).sum(), x)
        got = score(MixtureDenoiser(data, schedule)(x, t, None), here)
        assert torch.allclose(got, wanted, atol=1e-8), name


def test_grids_decrease_from_first_to_last():
    schedule = SCHEDULES["cosine"]
    grids = {
        "uniform": uniform_times(7),
        "quadratic": quadratic_times(7),
        "log-snr": uniform_log_snr_times(schedule, 7),
        "karras": karras_times(schedule, 7),
        "trailing": trailing_times(1000, 7),
        "leading": leading_times(1000, 7),
    }
    for name, times in grids.items():
        assert times.shape == (8,), name
        assert bool((times.diff() < 0).all()), name
        assert float(times[-1]) == 0.0, name
    assert torch.allclose(quadratic_times(4).sqrt().diff(), numbers(-0.25).expand(4))
    levels = (-schedule.log_snr(grids["karras"]) / 2).exp() ** (1 / 7)
    assert torch.allclose(levels.diff(), levels.diff().mean().expand(7), rtol=1e-6)
    assert (trailing_times(1000, 10)[:3] * 1000).tolist() == [1000, 900, 800]
    assert (leading_times(1000, 10, offset=1)[:2] * 1000).tolist() == [902, 802]


DATA = Mixture(numbers([0.2], [-0.6]), numbers(0.3, 0.1), numbers(0.7, 0.3))
DISCRETE = SCHEDULES["discrete linear"]


def test_a_solver_shows_every_step_and_can_be_stopped():
    steps = DDIM().steps(
        DISCRETE,
        MixtureDenoiser(DATA, DISCRETE),
        torch.randn(3, 1, generator=rng(), dtype=torch.float64),
        trailing_times(1000, 5),
        None,
        rng(),
    )
    first, second = next(steps), next(steps)
    assert (first.done, second.done, second.total, second.time) == (1, 2, 5, 0.6)
    assert second.prediction.x0.shape == second.x.shape == (3, 1)
    *_, last = steps
    assert (last.done, last.time) == (5, 0.0)
    assert torch.equal(last.x, last.prediction.x0)


@pytest.mark.parametrize("make", [DDPM, EulerAncestral, DPMSolverPPSDE, PredictorCorrector])
def test_stochastic_solvers_refuse_increasing_times(make):
    with pytest.raises(ValueError, match="decreasing"):
        make().solve(
            DISCRETE,
            MixtureDenoiser(DATA, DISCRETE),
            torch.zeros(1, 1),
            uniform_times(3).flip(0),
            None,
            rng(),
        )


def test_solvers_in_x_over_alpha_refuse_pure_noise():
    schedule = DiscreteSchedule(zero_terminal_snr=True)
    with pytest.raises(ValueError, match="use DDIM or DDPM"):
        Euler().solve(
            schedule,
            lambda x, t, condition: Prediction(x, x),
            torch.zeros(1, 1),
            uniform_times(3),
            None,
            rng(),
        )


@pytest.mark.parametrize(
    "solver",
    [
        Euler(churn=Churn(amount=5.0)),
        Heun(churn=Churn(amount=40.0, noise=1.0)),
        DPMSolverPPSDE(),
        EulerAncestral(),
        PredictorCorrector(snr=0.05),
        UniPC(),
    ],
    ids=["euler churn", "heun churn", "sde", "ancestral", "predictor-corrector", "unipc"],
)
@pytest.mark.parametrize("name", ["cosine", "discrete linear", "edm"])
def test_solvers_sample_the_data(name, solver):
    schedule, count = SCHEDULES[name], 8000
    end = schedule.at(numbers(1.0))
    x = end.sigma * torch.randn(count, 1, generator=rng(), dtype=torch.float64)
    times = karras_times(schedule, 150, last=1e-3)
    got = solver.solve(schedule, MixtureDenoiser(DATA, schedule), x, times, None, rng(1))[:, 0]
    mean = 0.7 * 0.2 - 0.3 * 0.6
    variance = 0.7 * (0.09 + 0.04) + 0.3 * (0.01 + 0.36) - mean**2
    assert float(got.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / count) + 0.01)
    assert float(got.std()) == pytest.approx(math.sqrt(variance), rel=0.04)
    assert float((got < -0.4).double().mean()) == pytest.approx(0.3 + 0.7 * 0.02275, abs=0.03)


def test_the_analytic_variance_is_that_of_the_true_reverse_step():
    """On a gaussian x_s given x_t is gaussian, and its variance known."""
    data = Mixture(numbers([0.3]), numbers(0.5), numbers(1.0))
    for name in ("cosine", "discrete linear", "edm"):
        schedule = SCHEDULES[name]
        times = karras_times(schedule, 6, last=0.05)
        grid = time_grid(schedule, times)
        moments = [  # E noise^2 = sigma^2 / variance of x_t
            s**2 / (a**2 * 0.25 + s**2)
            for a, s in zip(grid.alpha[:-1], grid.sigma[:-1], strict=True)
        ]
        x = torch.full((20_000, 1), 0.4, dtype=torch.float64)
        one = times[2:4]
        got = AnalyticDPM(moments=moments[2:3]).solve(
            schedule, MixtureDenoiser(data, schedule), x, one, None, rng()
        )
        now, then = schedule.at(one[0]), schedule.at(one[1])
        ratio = now.alpha / then.alpha
        fresh = now.sigma**2 - ratio**2 * then.sigma**2
        prior = then.alpha**2 * 0.25 + then.sigma**2
        wanted = 1 / (1 / prior + ratio**2 / fresh)
        mean = wanted * (then.alpha * 0.3 / prior + ratio * 0.4 / fresh)
        assert float(got.var()) == pytest.approx(float(wanted), rel=0.04)
        assert float(got.mean()) == pytest.approx(float(mean), abs=float(4 * wanted.sqrt() / 141))


def test_the_moments_of_analytic_dpm_are_estimated_from_data():
    data, schedule = Mixture(numbers([0.3]), numbers(0.5), numbers(1.0)), SCHEDULES["cosine"]
    times = uniform_times(5, last=0.1)
    got = noise_moments(
        MixtureDenoiser(data, schedule), schedule, data.sample(20_000, rng()), times, None, rng(1)
    )
    here = schedule.at(times[:-1])
    wanted = here.sigma**2 / (here.alpha**2 * 0.25 + here.sigma**2)
    assert got == pytest.approx(wanted.tolist(), rel=0.05)
    with pytest.raises(ValueError, match="as many moments"):
        AnalyticDPM(moments=got[:-1]).solve(
            schedule, MixtureDenoiser(data, schedule), torch.zeros(1, 1), times, None, rng()
        )


def test_analytic_dpm_needs_few_steps_where_fixed_variances_need_many():
    data, schedule = Mixture(numbers([0.3]), numbers(0.5), numbers(1.0)), SCHEDULES["cosine"]
    times = uniform_log_snr_times(schedule, 10, first=0.99, last=0.02)
    denoiser = MixtureDenoiser(data, schedule)
    moments = noise_moments(denoiser, schedule, data.sample(20_000, rng()), times, None, rng(1))
    x = torch.randn(20_000, 1, generator=rng(2), dtype=torch.float64)
    deviations = [
        float(solver.solve(schedule, denoiser, x, times, None, rng(3)).std())
        for solver in (AnalyticDPM(moments=moments), DDPM())
    ]
    errors = [abs(deviation - 0.5) for deviation in deviations]
    assert errors[0] < 0.01
    assert all(before > after for after, before in pairwise(errors))
    assert errors[1] > 5 * errors[0]
