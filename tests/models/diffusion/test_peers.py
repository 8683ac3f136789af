"""Every step of every solver beside diffusers 0.42 and k-diffusion (peers/make_peers.py)."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.diffusion.parameterization import Prediction, from_noise, from_v
from models.diffusion.schedules.discrete import (
    CosineBetasConfig,
    DiscreteSchedule,
    LinearBetasConfig,
    SqrtLinearBetasConfig,
)
from models.diffusion.schedules.ve_schedule import EDMSchedule, VESchedule
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
from models.diffusion.solvers.times import (
    karras_times,
    leading_times,
    trailing_times,
    uniform_times,
)
from models.diffusion.solvers.unipc import UniPC
from models.diffusion.thresholding import DynamicThresholding

PEER = load_file(Path(__file__).with_name("peers") / "solvers.safetensors")
LATENT = DiscreteSchedule(betas=SqrtLinearBetasConfig())
SCHEDULE, ZERO = LATENT, LATENT.model_copy(update={"zero_terminal_snr": True})
LEADING, TRAILING = leading_times(1000, 20), trailing_times(1000, 20)


def noise_of(x, k):
    return 0.6 * x + 0.3 * torch.sin(3 * x + k / 200)


def network(schedule, read=from_noise, *, learned=False):
    """The peers' formula; their step k is the time (k + 1) / 1000."""

    def denoise(x, t, condition):
        pred = read(noise_of(x, float(t[0]) * 1000 - 1), x, schedule.at(t))
        spread = (0.8 * torch.sin(2 * x) + 1) / 2
        return Prediction(pred.x0, pred.noise, spread) if learned else pred

    return denoise


def levels(schedule):
    """The peers' formula for processes with alpha 1."""

    def denoise(x, t, condition):
        sigma = float(schedule.at(t).sigma[0])
        noise = noise_of(x / math.sqrt(1 + sigma**2), 100 * math.log(sigma))
        return Prediction(x - sigma * noise, noise)

    return denoise


def walked(solver, schedule, denoiser, x, times):
    rng = torch.Generator().manual_seed(7)
    return torch.stack(
        [x, *(step.x for step in solver.steps(schedule, denoiser, x, times, None, rng))]
    )


def grid(name):
    """The peer's steps of the network, then the first of all."""
    return torch.cat([(PEER[name] + 1) / 1000, torch.tensor([1e-3], dtype=torch.float64)])


CASES = {
    "ddim": (DDIM(), LEADING),
    "ddim_eta": (DDIM(eta=0.5), LEADING),
    "ddpm": (DDPM(), LEADING),
    "ddpm_large": (DDPM(variance="largest"), LEADING),
    "euler": (Euler(), TRAILING),
    "euler_ancestral": (EulerAncestral(), TRAILING),
    "dpm_2": (DPMSolver2(), grid("dpm_2_k")),
    "dpm_3": (DPMSolver3(), grid("dpm_3_k")),
    "dpm_pp_2s": (DPMSolverPP2S(), grid("dpm_pp_2s_k")),
    "dpm_pp_2m": (DPMSolverPP2M(), TRAILING),
    "dpm_pp_3m": (DPMSolverPP3M(released=True), TRAILING),
    "dpm_pp_sde": (DPMSolverPPSDE(), TRAILING),
    "dpm_pp_sde_1": (DPMSolverPPSDE(points=1), TRAILING),
    "unipc_1": (UniPC(points=1), TRAILING),
    "unipc_2": (UniPC(points=2), TRAILING),
    "unipc_3": (UniPC(points=3), TRAILING),
}


@pytest.mark.parametrize("name", CASES)
def test_a_solver_takes_the_steps_of_diffusers(name):
    solver, times = CASES[name]
    got = walked(solver, SCHEDULE, network(SCHEDULE), PEER[name][0], times)
    assert float((got - PEER[name]).abs().max()) < 1e-5


def test_learned_variances_take_the_steps_of_diffusers():
    wanted = PEER["ddpm_learned"]
    got = walked(DDPM(), SCHEDULE, network(SCHEDULE, learned=True), wanted[0], LEADING)
    assert float((got - wanted).abs().max()) < 1e-5


def test_ddim_from_pure_noise_takes_the_steps_of_diffusers():
    wanted = PEER["ddim_zero"]
    got = walked(DDIM(), ZERO, network(ZERO, from_v), wanted[0], TRAILING)
    assert float((got - wanted).abs().max()) < 1e-5


def test_heun_takes_the_steps_of_diffusers():
    wanted = torch.cat([PEER["heun"][0:39:2], PEER["heun"][-1:]])
    got = walked(Heun(), SCHEDULE, network(SCHEDULE), wanted[0], TRAILING)
    assert float((got - wanted).abs().max()) < 1e-5


def test_the_deterministic_encoder_takes_the_steps_of_diffusers():
    wanted = PEER["ddim_inverse"]
    times = torch.cat([torch.zeros(1, dtype=torch.float64), (PEER["ddim_inverse_k"] + 1) / 1000])
    got = walked(DDIM(), SCHEDULE, network(SCHEDULE), wanted[0], times)
    assert float((got - wanted).abs().max()) < 1e-5


def test_predictor_corrector_takes_the_steps_of_diffusers():
    schedule, wanted = VESchedule(), PEER["predictor_corrector"]
    solver = PredictorCorrector()
    got = walked(solver, schedule, levels(schedule), wanted[0], uniform_times(19))[:-1]
    assert float((got - wanted[:-1]).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("name", "make"), [("euler", Euler), ("heun", Heun), ("dpmpp_2m", DPMSolverPP2M)]
)
def test_a_solver_takes_the_steps_of_k_diffusion(name, make):
    schedule, wanted = EDMSchedule(), PEER[f"k_{name}"]
    got = walked(make(), schedule, levels(schedule), wanted[0], uniform_times(20))
    assert float((got - wanted).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("linear", DiscreteSchedule(betas=LinearBetasConfig())),
        ("scaled_linear", LATENT),
        ("squaredcos_cap_v2", DiscreteSchedule(betas=CosineBetasConfig())),
        ("zero", LATENT.model_copy(update={"zero_terminal_snr": True})),
    ],
)
def test_discrete_schedules_are_those_of_diffusers(name, config):
    k = torch.cat([torch.arange(0, 1000, 37), torch.tensor([999])]).double()
    here = config.at((k + 1) / 1000)
    assert float((here.alpha**2 - PEER[f"alphas_{name}"]).abs().max()) < 1e-6
    assert torch.allclose(here.alpha**2 + here.sigma**2, torch.ones(len(k)).double(), atol=1e-12)


def test_karras_levels_are_those_of_the_peers():
    schedule = VESchedule(sigma_min=0.002, sigma_max=80.0)
    by_ve = schedule.at(karras_times(schedule, 20)).sigma
    by_edm = EDMSchedule().at(uniform_times(20)).sigma
    assert torch.allclose(by_ve, PEER["k_sigmas"], rtol=1e-6)
    assert torch.allclose(by_edm, PEER["k_sigmas"], rtol=1e-6)
    assert torch.allclose(schedule.at(karras_times(schedule, 19)).sigma, PEER["karras"], rtol=1e-6)


def test_dynamic_thresholding_is_that_of_diffusers():
    x = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(x, t, condition):
        return Prediction(3 * x, x)

    t = torch.full((2,), 0.5, dtype=torch.float64)
    pred = DynamicThresholding(percentile=0.9).wrap(denoise, SCHEDULE)(x, t, None)
    assert torch.allclose(pred.x0, PEER["thresholded"], atol=1e-6)
    assert torch.allclose(SCHEDULE.at(t).add_noise(pred.x0, pred.noise), x)
