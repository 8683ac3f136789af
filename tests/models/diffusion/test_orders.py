"""Measured orders of convergence, on data whose best denoiser is known."""

import math
from itertools import pairwise

import pytest
import torch

from models.diffusion.mixture import Mixture, MixtureDenoiser
from models.diffusion.schedules.schedule import CosineScheduleConfig, EDMScheduleConfig
from models.diffusion.solvers import (
    ddim,
    ddpm,
    dpm_solver_pp_sde,
    euler_ancestral,
    predictor_corrector,
)
from models.diffusion.solvers.ddim import DDIM
from models.diffusion.solvers.dpm_solver_2 import DPMSolver2
from models.diffusion.solvers.dpm_solver_3 import DPMSolver3
from models.diffusion.solvers.dpm_solver_pp_2m import DPMSolverPP2M
from models.diffusion.solvers.dpm_solver_pp_2s import DPMSolverPP2S
from models.diffusion.solvers.dpm_solver_pp_3m import DPMSolverPP3M
from models.diffusion.solvers.dpm_solver_pp_sde import DPMSolverPPSDE
from models.diffusion.solvers.euler import Euler
from models.diffusion.solvers.heun import Heun
from models.diffusion.solvers.times import uniform_log_snr_times, uniform_times
from models.diffusion.solvers.unipc import UniPC


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


MEAN, DEVIATION = 0.3, 0.5
GAUSSIAN = Mixture(numbers([MEAN]), numbers(DEVIATION), numbers(1.0))
MIXTURE = Mixture(
    numbers([-1.0, 0.2], [0.8, 0.9], [0.4, -1.0]), numbers(0.3, 0.5, 0.4), numbers(0.3, 0.5, 0.2)
)
EXPLODING = EDMScheduleConfig().build()
COSINE = CosineScheduleConfig().build()
SOLVERS = {
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpm_solver_2": DPMSolver2,
    "dpm_solver_3": DPMSolver3,
    "dpm_solver_pp_2s": DPMSolverPP2S,
    "dpm_solver_pp_2m": DPMSolverPP2M,
    "dpm_solver_pp_3m": DPMSolverPP3M,
    "unipc_1": lambda schedule: UniPC(schedule, 1),
    "unipc_2": lambda schedule: UniPC(schedule, 2),
    "unipc_3": lambda schedule: UniPC(schedule, 3),
}


def solved(solver, data, schedule, x, times):
    return solver.solve(MixtureDenoiser(data, schedule), x, times, None, torch.Generator())


def start(data):
    rng = torch.Generator().manual_seed(0)
    return 80 * torch.randn(16, data.means.shape[1], generator=rng, dtype=torch.float64)


def gaussian_truth(schedule, x, first, last):
    """The flow of gaussian data keeps (x - alpha mean) / standard deviation."""
    ends = schedule.at(numbers(first, last))
    spread = (ends.alpha**2 * DEVIATION**2 + ends.sigma**2).sqrt()
    return ends.alpha[1] * MEAN + spread[1] * (x - ends.alpha[0] * MEAN) / spread[0]


def slope(errors):
    return math.log2(errors[-2] / errors[-1])


def errors(make, data, truth, counts):
    x = start(data)
    return [
        float((solved(make(EXPLODING), data, EXPLODING, x, uniform_times(n)) - truth).norm())
        for n in counts
    ]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_has_its_declared_order_on_a_gaussian(name):
    truth = gaussian_truth(EXPLODING, start(GAUSSIAN), 1.0, 0.0)
    measured = slope(errors(SOLVERS[name], GAUSSIAN, truth, (264, 528)))
    assert measured == pytest.approx(SOLVERS[name](EXPLODING).order, abs=0.1)


@pytest.fixture(scope="module")
def mixture_truth():
    return solved(DPMSolver3(EXPLODING), MIXTURE, EXPLODING, start(MIXTURE), uniform_times(4500))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_has_its_declared_order_on_a_mixture(name, mixture_truth):
    measured = slope(errors(SOLVERS[name], MIXTURE, mixture_truth, (264, 528)))
    assert measured == pytest.approx(SOLVERS[name](EXPLODING).order, abs=0.1)


def test_the_released_third_order_solver_is_of_second_order():
    truth = gaussian_truth(EXPLODING, start(GAUSSIAN), 1.0, 0.0)
    made = errors(lambda s: DPMSolverPP3M(s, released=True), GAUSSIAN, truth, (264, 528))
    assert slope(made) == pytest.approx(2, abs=0.1)


def test_an_order_below_the_declared_one_would_be_noticed():
    truth = gaussian_truth(EXPLODING, start(GAUSSIAN), 1.0, 0.0)
    assert slope(errors(DDIM, GAUSSIAN, truth, (264, 528))) < 1.1


@pytest.mark.parametrize("make", [DDIM, Euler, Heun, DPMSolver2, DPMSolverPP2M, UniPC])
def test_inversion_converges_at_the_order_of_the_solver(make):
    """Encode, decode: a doubling halves DDIM's error and quarters those of second order."""
    rng = torch.Generator().manual_seed(1)
    x = MIXTURE.sample(32, rng)
    gaps = []
    for steps in (100, 200, 400):
        times = uniform_times(steps, first=0.95, last=0.05)
        encoded = solved(make(COSINE), MIXTURE, COSINE, x, times.flip(0))
        decoded = solved(make(COSINE), MIXTURE, COSINE, encoded, times)
        gaps.append(float((decoded - x).abs().mean()))
    ratio = 0.5 ** make(COSINE).order
    assert all(after / before < 1.2 * ratio for before, after in pairwise(gaps)), gaps
    if make is DDIM:
        assert all(0.45 < after / before < 0.55 for before, after in pairwise(gaps)), gaps


def test_a_thousand_steps_of_ddim_encode_and_decode_within_five_thousandths():
    x = MIXTURE.sample(64, torch.Generator().manual_seed(1))
    times = uniform_times(1000)
    encoded = solved(DDIM(COSINE), MIXTURE, COSINE, x, times.flip(0))
    decoded = solved(DDIM(COSINE), MIXTURE, COSINE, encoded, times)
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


def variance_error(module, solver, times, monkeypatch):
    """Of samples of the gaussian, without sampling."""
    monkeypatch.setattr(module, "randn_like", Units())
    x = torch.zeros(len(times) + 1, 1, dtype=torch.float64)
    x[1] = 1
    out = solved(solver, GAUSSIAN, COSINE, x, times)[:, 0]
    gains = out[1:] - out[0]
    ends = COSINE.at(times[[0, -1]])
    spread = ends.alpha**2 * DEVIATION**2 + ends.sigma**2
    mean = out[0] + gains[0] * ends.alpha[0] * MEAN
    assert float(mean) == pytest.approx(float(ends.alpha[1] * MEAN), abs=1e-12)
    return abs(float(gains[0] ** 2 * spread[0] + gains[1:].square().sum() - spread[1]))


WEAK = {
    "ddim, eta 1": (ddim, lambda: DDIM(COSINE, 1.0), 1),
    "ddim, eta 0.5": (ddim, lambda: DDIM(COSINE, 0.5), 1),
    "ddpm": (ddpm, lambda: ddpm.DDPM(COSINE), 1),
    "ddpm, largest": (ddpm, lambda: ddpm.DDPM(COSINE, "largest"), 1),
    "euler_ancestral": (euler_ancestral, lambda: euler_ancestral.EulerAncestral(COSINE), 1),
    "sde 1": (dpm_solver_pp_sde, lambda: DPMSolverPPSDE(COSINE, slope=False), 1),
    "sde 2m": (dpm_solver_pp_sde, lambda: DPMSolverPPSDE(COSINE), 2),
    "reverse diffusion": (
        predictor_corrector,
        lambda: predictor_corrector.PredictorCorrector(COSINE, 0),
        1,
    ),
}


@pytest.mark.parametrize("name", WEAK)
def test_a_stochastic_solver_has_its_weak_order(name, monkeypatch):
    module, make, order = WEAK[name]
    made = [
        variance_error(
            module, make(), uniform_log_snr_times(COSINE, n, first=0.95, last=0.05), monkeypatch
        )
        for n in (128, 256)
    ]
    assert slope(made) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", ["sde 1", "sde 2m"])
def test_a_stochastic_solver_has_strong_order_one_on_a_mixture(name, monkeypatch):
    """Additive noise: order 1 for the same path of it, however smooth the drift."""
    module, make, _ = WEAK[name]
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
        drawn = iter(noises)
        monkeypatch.setattr(module, "randn_like", lambda x, rng, drawn=drawn: next(drawn))
        ends.append(solved(make(), MIXTURE, COSINE, x, times))
    gaps = [float((end - ends[0]).square().mean().sqrt()) for end in ends[1:]]
    assert math.log2(gaps[1] / gaps[0]) == pytest.approx(1, abs=0.15)


def coarser(noises, h):
    """The noise of every two steps h of lambda, each with the weight the solver gives it."""
    early, late = noises[0::2], noises[1::2]
    one = math.sqrt(-math.expm1(-2 * h))
    return (math.exp(-h) * one * early + one * late) / math.sqrt(-math.expm1(-4 * h))
