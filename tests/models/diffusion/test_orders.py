"""Measured orders of convergence, on data whose best denoiser is known."""

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from closed_forms import Mixture, MixtureDenoiser

from models.diffusion.parameterization import from_x0
from models.diffusion.schedules.schedule import CosineSchedule
from models.diffusion.schedules.ve_schedule import EDMSchedule
from models.diffusion.solvers import (
    analytic_dpm,
    churn,
    ddim,
    ddpm,
    dpm_solver_pp_sde,
    euler_ancestral,
    predictor_corrector,
)
from models.diffusion.solvers.analytic_dpm import AnalyticDPM
from models.diffusion.solvers.churn import Churn
from models.diffusion.solvers.config import SolverConfig
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.ddpm import DDPM
from models.diffusion.solvers.dpm_solver_2 import DPMSolver2
from models.diffusion.solvers.dpm_solver_3 import DPMSolver3
from models.diffusion.solvers.dpm_solver_pp_2m import DPMSolverPP2M
from models.diffusion.solvers.dpm_solver_pp_2s import DPMSolverPP2S
from models.diffusion.solvers.dpm_solver_pp_3m import DPMSolverPP3M
from models.diffusion.solvers.dpm_solver_pp_sde import DPMSolverPPSDE
from models.diffusion.solvers.euler import Euler
from models.diffusion.solvers.euler_ancestral import EulerAncestral
from models.diffusion.solvers.heun import Heun
from models.diffusion.solvers.predictor_corrector import PredictorCorrector
from models.diffusion.solvers.times import uniform_log_snr_times, uniform_times
from models.diffusion.solvers.unipc import UniPC


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


MEAN, STD = 0.3, 0.5
GAUSSIAN = Mixture(numbers([MEAN]), numbers(STD), numbers(1.0))
MIXTURE = Mixture(
    numbers([-1.0, 0.2], [0.8, 0.9], [0.4, -1.0]), numbers(0.3, 0.5, 0.4), numbers(0.3, 0.5, 0.2)
)
EXPLODING = EDMSchedule()
COSINE = CosineSchedule()
DETERMINISTIC = {
    "ddim": DDIM(),
    "euler": Euler(),
    "euler_ancestral, eta 0": EulerAncestral(eta=0.0),
    "heun": Heun(),
    "dpm_solver_2": DPMSolver2(),
    "dpm_solver_3": DPMSolver3(),
    "dpm_solver_pp_2s": DPMSolverPP2S(),
    "dpm_solver_pp_2m": DPMSolverPP2M(),
    "dpm_solver_pp_3m": DPMSolverPP3M(),
    "dpm_solver_pp_3m, released": DPMSolverPP3M(released=True),
    "unipc_1": UniPC(points=1),
    "unipc_2": UniPC(points=2),
    "unipc_3": UniPC(points=3),
}
STOCHASTIC = {
    "ddim, eta 1": (ddim, DDIM(eta=1.0)),
    "ddim, eta 0.5": (ddim, DDIM(eta=0.5)),
    "ddpm": (ddpm, DDPM()),
    "ddpm, largest": (ddpm, DDPM(variance="largest")),
    "euler, churn": (churn, Euler(churn=Churn(amount=10.0))),
    "euler_ancestral": (euler_ancestral, EulerAncestral()),
    "euler_ancestral, eta 0.5": (euler_ancestral, EulerAncestral(eta=0.5)),
    "heun, churn": (churn, Heun(churn=Churn(amount=10.0))),
    "sde 1": (dpm_solver_pp_sde, DPMSolverPPSDE(points=1)),
    "sde 2m": (dpm_solver_pp_sde, DPMSolverPPSDE()),
    "analytic_dpm": (analytic_dpm, AnalyticDPM()),
    "reverse diffusion": (predictor_corrector, PredictorCorrector(corrections=0)),
    "predictor_corrector": (predictor_corrector, PredictorCorrector()),
}


def test_every_solver_of_the_union_is_measured():
    measured = {*DETERMINISTIC.values(), *(solver for _, solver in STOCHASTIC.values())}
    assert {type(solver) for solver in measured} == set(get_args(get_args(SolverConfig)[0]))
    for name, count in {"variance": 2, "points": 2 + 3, "released": 2}.items():
        assert len({(s.kind, getattr(s, name)) for s in measured if hasattr(s, name)}) == count


def solved(solver, data, schedule, x, times):
    return solver.solve(
        schedule, MixtureDenoiser(data, schedule), x, times, None, torch.Generator()
    )


def start(data):
    rng = torch.Generator().manual_seed(0)
    return 80 * torch.randn(16, data.means.shape[1], generator=rng, dtype=torch.float64)


def gaussian_truth(schedule, x, first, last):
    """The flow of gaussian data keeps (x - alpha mean) / standard deviation."""
    ends = schedule.at(numbers(first, last))
    std = (ends.alpha**2 * STD**2 + ends.sigma**2).sqrt()
    return ends.alpha[1] * MEAN + std[1] * (x - ends.alpha[0] * MEAN) / std[0]


def slope(errors):
    return math.log2(errors[-2] / errors[-1])


def errors(solver, data, truth, counts):
    x = start(data)
    return [
        float((solved(solver, data, EXPLODING, x, uniform_times(n)) - truth).norm()) for n in counts
    ]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_solver_has_its_declared_order_on_a_gaussian(name):
    truth = gaussian_truth(EXPLODING, start(GAUSSIAN), 1.0, 0.0)
    measured = slope(errors(DETERMINISTIC[name], GAUSSIAN, truth, (264, 528)))
    assert measured == pytest.approx(DETERMINISTIC[name].order, abs=0.1)


@pytest.fixture(scope="module")
def mixture_truth():
    return solved(DPMSolver3(), MIXTURE, EXPLODING, start(MIXTURE), uniform_times(4500))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_solver_has_its_declared_order_on_a_mixture(name, mixture_truth):
    measured = slope(errors(DETERMINISTIC[name], MIXTURE, mixture_truth, (264, 528)))
    assert measured == pytest.approx(DETERMINISTIC[name].order, abs=0.1)


def test_the_released_third_order_solver_is_of_second_order():
    truth = gaussian_truth(EXPLODING, start(GAUSSIAN), 1.0, 0.0)
    solver = DPMSolverPP3M(released=True)
    assert solver.order == 2
    assert slope(errors(solver, GAUSSIAN, truth, (264, 528))) == pytest.approx(2, abs=0.1)


def test_an_order_below_the_declared_one_would_be_noticed():
    truth = gaussian_truth(EXPLODING, start(GAUSSIAN), 1.0, 0.0)
    assert slope(errors(DDIM(), GAUSSIAN, truth, (264, 528))) < 1.1


@pytest.mark.parametrize(
    "solver", [DDIM(), Euler(), Heun(), DPMSolver2(), DPMSolverPP2M(), UniPC()]
)
def test_inversion_converges_at_the_order_of_the_solver(solver):
    """Encode, decode: a doubling halves DDIM's error and quarters those of second order."""
    rng = torch.Generator().manual_seed(1)
    x = MIXTURE.sample(32, rng)
    gaps = []
    for steps in (100, 200, 400):
        times = uniform_times(steps, first=0.95, last=0.05)
        encoded = solved(solver, MIXTURE, COSINE, x, times.flip(0))
        decoded = solved(solver, MIXTURE, COSINE, encoded, times)
        gaps.append(float((decoded - x).abs().mean()))
    ratio = 0.5**solver.order
    assert all(after / before < 1.2 * ratio for before, after in pairwise(gaps)), gaps
    if isinstance(solver, DDIM):
        assert all(0.45 < after / before < 0.55 for before, after in pairwise(gaps)), gaps


def test_a_thousand_steps_of_ddim_encode_and_decode_within_five_thousandths():
    x = MIXTURE.sample(64, torch.Generator().manual_seed(1))
    times = uniform_times(1000)
    encoded = solved(DDIM(), MIXTURE, COSINE, x, times.flip(0))
    decoded = solved(DDIM(), MIXTURE, COSINE, encoded, times)
    assert float((decoded - x).abs().mean()) < 5e-3


class Units:
    """Noise 1 in row 2 + i at step i, so that a linear solver shows what it does with each."""

    def __init__(self):
        self.step = 0

    def __call__(self, x, rng):
        out = torch.zeros_like(x)
        out[2 + self.step] = 1
        self.step += 1
        return out


STDS = numbers(0.3, 0.5)
"""Of the two columns of a gaussian, of which analytic variances are not exact."""


def two_gaussians(x, t, condition):
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STDS^2)."""
    here = COSINE.at(t[:1])
    pull = here.alpha * STDS**2 / (here.alpha**2 * STDS**2 + here.sigma**2)
    return from_x0(MEAN + pull * (x - here.alpha * MEAN), x, here)


def with_moments(solver, times):
    """Analytic-DPM with its true moments E|noise|^2 / d."""
    if not isinstance(solver, AnalyticDPM):
        return solver
    here = COSINE.at(times[:-1, None])
    moments = here.sigma**2 / (here.alpha**2 * STDS**2 + here.sigma**2)
    return AnalyticDPM(moments=tuple(moments.mean(dim=1).tolist()))


def variance_error(module, solver, times, monkeypatch):
    """Of samples of the gaussian, without sampling."""
    monkeypatch.setattr(module, "randn_like", Units())
    x = torch.zeros(len(times) + 1, 2, dtype=torch.float64)
    x[1] = 1
    solver = with_moments(solver, times)
    out = solver.solve(COSINE, two_gaussians, x, times, None, torch.Generator())
    gains = out[1:] - out[0]
    ends = COSINE.at(times[[0, -1], None])
    variance = ends.alpha**2 * STDS**2 + ends.sigma**2
    mean = out[0] + gains[0] * ends.alpha[0] * MEAN
    assert torch.allclose(mean, ends.alpha[1] * MEAN, atol=1e-12)
    got = gains[0] ** 2 * variance[0] + gains[1:].square().sum(dim=0)
    return float((got - variance[1]).abs().max())


@pytest.mark.parametrize("name", [name for name, (_, s) in STOCHASTIC.items() if s.order])
def test_a_stochastic_solver_has_its_declared_order_in_the_variance(name, monkeypatch):
    module, solver = STOCHASTIC[name]
    made = [
        variance_error(
            module, solver, uniform_log_snr_times(COSINE, n, first=0.95, last=0.05), monkeypatch
        )
        for n in (128, 256)
    ]
    assert slope(made) == pytest.approx(solver.order, abs=0.1)


def test_langevin_corrections_leave_an_error_that_more_steps_do_not_remove():
    """Half the steps are not half the error: the size of a Langevin step is that of the noise."""
    solver, rng = PredictorCorrector(snr=0.4), torch.Generator().manual_seed(0)
    assert solver.order is None
    x = torch.randn(20_000, 2, generator=rng, dtype=torch.float64)
    found = []
    for steps in (64, 128):
        times = uniform_log_snr_times(COSINE, steps, first=0.95, last=0.05)
        out = solver.solve(COSINE, two_gaussians, x, times, None, rng)
        end = COSINE.at(times[-1])
        found.append(float((out.var(dim=0) / (end.alpha**2 * STDS**2 + end.sigma**2) - 1)[0]))
    assert all(abs(each) > 0.05 for each in found), found
    assert abs(found[1]) > 0.75 * abs(found[0]), found


@pytest.mark.parametrize("name", ["sde 1", "sde 2m"])
def test_a_stochastic_solver_has_strong_order_one_on_a_mixture(name, monkeypatch):
    """Additive noise: order 1 for the same path of it, however smooth the drift."""
    module, solver = STOCHASTIC[name]
    rng = torch.Generator().manual_seed(2)
    finest = 512
    noises = torch.randn(finest, 200, 2, generator=rng, dtype=torch.float64)
    x = torch.randn(200, 2, generator=rng, dtype=torch.float64)
    ends = []
    log_snr = COSINE.log_snr(numbers(0.95, 0.05))
    span = float(log_snr[1] - log_snr[0]) / 2
    for steps in (finest, 64, 32):
        times = uniform_log_snr_times(COSINE, steps, first=0.95, last=0.05)
        while len(noises) > steps:
            noises = coarser(noises, span / len(noises))
        samples = iter(noises)
        monkeypatch.setattr(module, "randn_like", lambda x, rng, samples=samples: next(samples))
        ends.append(solved(solver, MIXTURE, COSINE, x, times))
    gaps = [float((end - ends[0]).square().mean().sqrt()) for end in ends[1:]]
    assert math.log2(gaps[1] / gaps[0]) == pytest.approx(1, abs=0.15)


def coarser(noises, h):
    """The noise of every two steps h of lambda, each with the weight the solver gives it."""
    early, late = noises[0::2], noises[1::2]
    one = math.sqrt(-math.expm1(-2 * h))
    return (math.exp(-h) * one * early + one * late) / math.sqrt(-math.expm1(-4 * h))
