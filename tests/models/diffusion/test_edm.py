"""EDM's preconditioning beside its closed forms (arXiv 2206.00364, table 1)."""

import pytest
import torch
from pydantic import ValidationError

from models.diffusion.condition import Condition
from models.diffusion.losses import denoising_loss, simple_loss
from models.diffusion.parameterization import Prediction, edm_input, from_edm, from_v, to_edm
from models.diffusion.process import ProcessConfig, denoiser
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.schedules.schedule import CosineSchedule
from models.diffusion.schedules.ve_schedule import EDMSchedule, VESchedule
from models.diffusion.solvers.heun import Heun
from models.diffusion.solvers.times import uniform_times
from models.diffusion.weighting import EDM

S = 0.5
SCHEDULES = [EDMSchedule(), VESchedule(), CosineSchedule()]
T = torch.tensor([0.02, 0.3, 0.5, 0.8, 0.98], dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_coefficients_are_those_of_the_table():
    here = EDMSchedule().at(T)
    x, raw = normal(5, 3), normal(5, 3, seed=1)
    u = here.sigma[:, None]
    skip, out = S**2 / (u**2 + S**2), u * S / (u**2 + S**2).sqrt()
    assert torch.allclose(from_edm(raw, x, here, sigma_data=S).x0, skip * x + out * raw, rtol=1e-12)
    assert torch.allclose(edm_input(x, here, sigma_data=S), x / (u**2 + S**2).sqrt(), rtol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_target_converts_back_to_the_truth_and_noise_belongs_to_x0(schedule):
    here = schedule.at(T)
    x0, noise = normal(5, 2, 3), normal(5, 2, 3, seed=1)
    x = here.add_noise(x0, noise)
    back = from_edm(to_edm(Prediction(x0, noise), here, S), x, here, sigma_data=S)
    assert torch.allclose(back.x0, x0, atol=1e-9)
    assert torch.allclose(back.noise, noise, atol=1e-9)
    pred = from_edm(normal(5, 2, 3, seed=2), x, here, sigma_data=S)
    assert torch.allclose(here.add_noise(pred.x0, pred.noise), x, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_inputs_and_targets_have_variance_one_at_every_time(schedule):
    here = schedule.at(T)
    count = 200_000
    x0, noise = S * normal(5, count), normal(5, count, seed=1)
    x = here.add_noise(x0, noise)
    for values in (edm_input(x, here, sigma_data=S), to_edm(Prediction(x0, noise), here, S)):
        # the standard error of a variance is sqrt(2 / n)
        assert torch.allclose(
            values.var(dim=1), torch.ones(5).double(), atol=4 * (2 / count) ** 0.5
        )


def test_for_data_of_deviation_one_it_is_minus_v_under_a_schedule_that_preserves_variance():
    here = CosineSchedule().at(T)
    x, raw = normal(5, 4), normal(5, 4, seed=1)
    edm, v = from_edm(raw, x, here, sigma_data=1.0), from_v(-raw, x, here)
    assert torch.allclose(edm.x0, v.x0, atol=1e-12)
    assert torch.allclose(edm.noise, v.noise, atol=1e-12)


def test_it_needs_no_signal_and_no_noise():
    silent = DiscreteSchedule(zero_terminal_snr=True)
    here = silent.at(torch.tensor([0.0, 1.0], dtype=torch.float64))
    x, raw = normal(2, 4), normal(2, 4, seed=1)
    pred = from_edm(raw, x, here, sigma_data=S)
    assert torch.allclose(pred.x0[0], x[0])
    assert torch.allclose(pred.x0[1], S * raw[1])
    assert torch.allclose(pred.noise[1], x[1])


class Linear(torch.nn.Module):
    """Knows what it was fed."""

    process = ProcessConfig(schedule=EDMSchedule(), prediction_type="edm").build()

    def forward(self, x, t, condition):
        self.seen = x
        return 0.3 * x + 0.1


def test_its_simple_loss_is_edms_weighted_error():
    process, x0, noise = Linear.process, S * normal(5, 7).float(), normal(5, 7, seed=1).float()
    args = (process, x0, Condition(), T.float(), noise)
    simple, weighted = simple_loss(Linear(), *args), denoising_loss(Linear(), *args, EDM())
    assert torch.allclose(simple.value, weighted.value, rtol=1e-3)


def test_networks_are_fed_what_is_scaled_and_denoisers_give_back_what_is_not():
    network, x = Linear(), 80 * normal(2, 4)
    t = torch.ones(2, dtype=torch.float64)
    pred = denoiser(network)(x, t, Condition())
    assert float(network.seen.std()) == pytest.approx(float(x.std()) / 80, rel=1e-3)
    assert torch.allclose(pred.x0 + 80 * pred.noise, x)


def test_the_best_network_for_normal_data_is_zero_and_samples_have_its_deviation():
    class Zero(Linear):
        def forward(self, x, t, condition):
            return torch.zeros_like(x)

    schedule = Zero.process.schedule
    x = 80 * normal(4000, 1)
    sampled = Heun().solve(schedule, denoiser(Zero()), x, uniform_times(128), Condition(), None)
    assert float(sampled.std() / x.std()) == pytest.approx(S / (80**2 + S**2) ** 0.5, rel=2e-3)


def test_a_deviation_of_nothing_is_refused():
    with pytest.raises(ValidationError, match="sigma_data"):
        ProcessConfig(prediction_type="edm", sigma_data=0.0)
