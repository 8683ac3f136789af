"""What the channels of a learned variance mean to the sampler."""

import pytest
import torch

from models.diffusion.condition import Condition
from models.diffusion.process import ProcessConfig, denoiser
from models.diffusion.solvers.ddpm import DDPM


class Fixed:
    """A network of one colour whose spread is the same everywhere."""

    def __init__(self, spread):
        self.process = ProcessConfig(prediction_type="x0", variance="learned").build()
        self.logvar_fraction = spread

    def __call__(self, x, t, condition):
        return torch.cat(
            [torch.zeros_like(x), torch.full_like(x, 2 * self.logvar_fraction - 1)], dim=1
        )


@pytest.mark.parametrize("spread", [0.0, 0.25, 1.0])
def test_a_learned_variance_lies_between_the_two_sensible_ones(spread):
    network = Fixed(spread)
    schedule = network.process.schedule
    times = torch.tensor([0.6, 0.4], dtype=torch.float64)
    x = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    sampled = DDPM().solve(schedule, denoiser(network), x, times, Condition(), rng)
    here = schedule.at(times)
    (a_t, a_s), (v_t, v_s) = here.alpha, here.sigma**2
    largest = v_t - (a_t / a_s) ** 2 * v_s
    smallest = largest * v_s / v_t
    wanted = smallest ** (1 - spread) * largest**spread
    assert float(sampled.var()) == pytest.approx(float(wanted), rel=0.05)
