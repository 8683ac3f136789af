"""A batch that shares its time is converted by plain numbers, in fewer passes."""

import pytest
import torch

from models.diffusion.parameterization import Prediction
from models.diffusion.process import ProcessConfig, _Coefficients
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.schedules.schedule import CosineSchedule
from models.diffusion.schedules.ve_schedule import EDMSchedule
from models.diffusion.solvers.solver import lincomb, scalars, time_grid


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(
    ("prediction_type", "schedule"),
    [
        ("x0", CosineSchedule()),
        ("noise", DiscreteSchedule()),
        ("v", CosineSchedule()),
        ("edm", CosineSchedule()),
        ("edm", EDMSchedule()),
    ],
)
@pytest.mark.parametrize("variance", ["fixed", "learned"])
def test_a_shared_time_converts_as_different_times_do(prediction_type, schedule, variance):
    process = ProcessConfig(
        prediction_type=prediction_type, schedule=schedule, variance=variance
    ).build()
    x, raw = noise(2, 3, 4, 4), noise(2, 3 * process.config.outputs, 4, 4, seed=1)
    for time in (0.01, 0.4, 0.99):
        shared = torch.full((2,), time, dtype=torch.float64)
        apart = torch.tensor([time, 0.5], dtype=torch.float64)
        for _ in range(2):  # the second time from the cache
            got, wanted = (process.prediction(raw, x, t) for t in (shared, apart))
            pairs = [(got.x0, wanted.x0), (got.noise, wanted.noise)]
            pairs.append((process.input(x, shared), process.input(x, apart)))
            if variance == "learned":
                pairs.append((got.logvar_fraction, wanted.logvar_fraction))
            for one, other in pairs:
                assert torch.allclose(one[0], other[0], rtol=1e-10, atol=1e-10)


def test_the_raw_output_is_passed_on_itself_and_the_rest_computed_when_read(counting):
    process = ProcessConfig(prediction_type="noise", schedule=DiscreteSchedule()).build()
    x, raw = noise(1, 3, 4, 4), noise(1, 3, 4, 4, seed=1)
    time = torch.full((1,), 0.5, dtype=torch.float64)
    process.prediction(raw, x, time)
    with counting() as before:
        pred = process.prediction(raw, x, time)
        assert pred.noise is raw
    with counting() as reading:
        assert pred.x0 is pred.x0
    assert (before.count, reading.count) == (0, 2)


def test_gradients_pass_through_a_shared_time():
    process = ProcessConfig(prediction_type="v").build()
    x = noise(2, 3).requires_grad_()
    shared = torch.full((2,), 0.3, dtype=torch.float64)
    (slope,) = torch.autograd.grad(process.prediction(2 * x, x, shared).x0.sum(), x)
    here = process.schedule.at(shared)
    assert torch.allclose(slope, (here.alpha - 2 * here.sigma)[:, None].expand(2, 3))


def test_coefficients_of_times_are_cached_but_not_for_ever(monkeypatch):
    monkeypatch.setattr("models.diffusion.process._CACHED_TIMES", 2)
    process = ProcessConfig().build()
    made = []
    monkeypatch.setattr(
        "models.diffusion.process._Coefficients",
        lambda *parts: made.append(1) or _Coefficients(*parts),
    )
    x = noise(2, 3)
    for time in (0.1, 0.2, 0.1, 0.2, 0.3, 0.1):
        process.prediction(x, x, torch.full((2,), time, dtype=torch.float64))
    assert len(made) == 4


def test_a_prediction_takes_tensors_or_what_computes_them():
    x = noise(2)
    pred = Prediction(lambda: x, x)
    assert pred.x0 is x
    assert pred.noise is x
    assert pred.logvar_fraction is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_sums_of_multiples_leave_their_parts_alone_and_keep_the_precision(dtype):
    x, one, other = (noise(2, 3, seed=seed, dtype=torch.float64).to(dtype) for seed in range(3))
    kept = x.clone()
    (weight,) = scalars([0.25], x)
    got = lincomb(x, weight, (one, -2.0), (other, 0.5))
    assert got.dtype == dtype
    assert torch.equal(x, kept)
    wanted = x.double() / 4 - 2 * one.double() + other.double() / 2
    assert torch.allclose(got.double(), wanted, atol=0.05 if dtype == torch.bfloat16 else 1e-6)


def test_a_grid_is_computed_once_for_many_batches():
    schedule, times = CosineSchedule(), torch.linspace(1, 0, 5)
    assert time_grid(schedule, times) is time_grid(schedule, times.clone())
    assert time_grid(schedule, times) is not time_grid(schedule, times[1:])
    assert time_grid(schedule, times) is not time_grid(CosineSchedule(log_snr_max=9.0), times)
