"""Losses: the variational bound beside numerical integration, weights, and times to train at."""

import math
from itertools import pairwise

import pytest
import torch
from closed_forms import Mixture, MixtureDenoiser
from torch import nn

from models.diffusion.condition import Condition
from models.diffusion.losses import denoising_loss, hybrid_loss, simple_loss
from models.diffusion.parameterization import Prediction
from models.diffusion.process import ProcessConfig
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.schedules.schedule import CosineSchedule
from models.diffusion.schedules.timesteps import (
    LogNormal,
    LossSecondMomentSampler,
    Stratified,
    Uniform,
)
from models.diffusion.schedules.ve_schedule import EDMSchedule
from models.diffusion.solvers.times import uniform_times
from models.diffusion.variational_bound import (
    Gaussian,
    discretized_log_likelihood,
    kl_divergence,
    posterior,
    reverse_step,
    vlb_terms,
)
from models.diffusion.weighting import EDM, P2, MinSnr, Snr, VLoss
from models.nn.random import randn_like

DISCRETE = DiscreteSchedule(steps=20)
SCHEDULES = [DISCRETE, CosineSchedule()]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def prior_term(x0, schedule):
    """KL(q(x_1 | x_0) || N(0, sigma(1)^2 + alpha(1)^2)): (B,), nats per value."""
    end = schedule.at(numbers(1.0)[0])
    truth = Gaussian(end.alpha * x0.double(), 2 * end.sigma.log())
    prior = Gaussian(torch.zeros_like(x0), (end.alpha**2 + end.sigma**2).log())
    return kl_divergence(truth, prior).flatten(1).mean(dim=1)


def variational_bound(denoiser, schedule, x0, times, rng):
    """The bound (B,) and its terms (n, B) over decreasing times from 1 to 0, a new x_t for each."""
    terms = []
    for now, then in pairwise(times.tolist()):
        t, s = x0.new_full((len(x0),), now), x0.new_full((len(x0),), then)
        x = schedule.at(t).add_noise(x0, randn_like(x0, rng))
        terms.append(vlb_terms(denoiser(x, t, None), schedule, x0, x, t, s))
    return prior_term(x0, schedule) + torch.stack(terms).sum(dim=0), torch.stack(terms)


def density(x, mean, variance):
    return torch.exp(-0.5 * (x - mean) ** 2 / variance) / math.sqrt(2 * math.pi * variance)


def q_step(schedule, x0, x, t, s, positions):
    """q(x_s | x_t, x_0) on a grid by Bayes' rule alone: q(x_t | x_s) q(x_s | x_0), normalised."""
    now, then = schedule.at(numbers(t)), schedule.at(numbers(s))
    ratio = float(now.alpha / then.alpha)
    fresh = float(now.sigma**2) - ratio**2 * float(then.sigma**2)
    joint = density(x, ratio * positions, fresh) * density(
        positions, float(then.alpha) * x0, float(then.sigma**2)
    )
    return joint / torch.trapezoid(joint, positions)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(0.2, 0.1), (0.6, 0.55), (1.0, 0.95)])
def test_a_term_of_the_bound_is_the_integral_it_stands_for(schedule, t, s):
    x0, x, spread = 0.4, -0.3, 0.3
    pred = Prediction(numbers([0.1]), numbers([0.0]), numbers([spread]))
    term = vlb_terms(pred, schedule, numbers([x0]), numbers([x]), numbers(t), numbers(s))
    step = reverse_step(schedule.at(numbers(t)), schedule.at(numbers(s)))
    model = posterior(pred.x0, numbers([x]), step, pred.logvar_fraction)
    mean, variance = float(model.mean), float(model.log_variance.exp())
    width = 40 * math.sqrt(variance)
    positions = torch.linspace(mean - width, mean + width, 400_001, dtype=torch.float64)
    q = q_step(schedule, x0, x, t, s, positions)
    log_p = -0.5 * ((positions - mean) ** 2 / variance + math.log(2 * math.pi * variance))
    integrand = torch.where(q > 1e-200, q * (q.clamp(min=1e-300).log() - log_p), 0.0)
    assert float(term) == pytest.approx(float(torch.trapezoid(integrand, positions)), abs=1e-6)


@pytest.mark.parametrize("mean", [-0.98, 0.013, 0.2, 1.02])
@pytest.mark.parametrize("deviation", [0.002, 0.05, 2.0])
@pytest.mark.parametrize("level", [0, 1, 128, 130, 255])
def test_the_decoder_gives_a_level_the_integral_over_its_bin(level, mean, deviation):
    x0 = 2 * level / 255 - 1
    low = x0 - 1 / 255 if level > 0 else min(mean, x0) - 40 * deviation
    high = x0 + 1 / 255 if level < 255 else max(mean, x0) + 40 * deviation
    positions = torch.linspace(low, high, 2_000_001 if level in (0, 255) else 200_001).double()
    positions = torch.linspace(low, high, len(positions), dtype=torch.float64)
    wanted = float(torch.trapezoid(density(positions, mean, deviation**2), positions))
    got = float(
        discretized_log_likelihood(
            numbers(x0), Gaussian(numbers(mean), numbers(2 * math.log(deviation)))
        )
    )
    if wanted > 1e-200:
        assert got == pytest.approx(math.log(wanted), rel=1e-6, abs=1e-6)
    assert math.isfinite(got)


def test_the_levels_share_all_probability():
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    p = Gaussian(torch.full((256,), 0.31).double(), torch.full((256,), -3.0).double())
    assert float(discretized_log_likelihood(levels, p).exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_prior_term_is_the_integral_it_stands_for(schedule):
    end = schedule.at(numbers(1.0))
    mean, variance = float(end.alpha) * 0.7, float(end.sigma**2)
    positions = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    q = density(positions, mean, variance)
    log_q = -0.5 * ((positions - mean) ** 2 / variance + math.log(2 * math.pi * variance))
    log_p = -0.5 * (positions**2 + math.log(2 * math.pi))
    wanted = float(torch.trapezoid(q * (log_q - log_p), positions))
    assert float(prior_term(numbers([0.7]), schedule)) == pytest.approx(wanted, abs=1e-6)


def test_the_bound_lies_above_the_entropy_and_decreases_with_more_steps():
    """Gaussian data of deviation 0.5, the best denoiser: the mean of -ln p is known."""
    data = Mixture(numbers([0.1]), numbers(0.5), numbers(1.0))
    x0 = data.sample(4000, rng())
    # a decoder of levels: the density times the bin
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.25) - math.log(2 / 255)
    gaps = []
    for steps in (50, 400):
        schedule = DiscreteSchedule(steps=1000)
        times = uniform_times(steps)
        total, terms = variational_bound(
            MixtureDenoiser(data, schedule), schedule, x0, times, rng()
        )
        assert terms.shape == (steps, 4000)
        gaps.append(float(total.mean()) - entropy)
    assert 0 < gaps[1] < gaps[0] - 0.1
    assert torch.allclose(total, prior_term(x0, schedule) + terms.sum(dim=0))


def test_learned_variances_lie_between_the_two_ends_by_their_logarithms():
    step = reverse_step(DISCRETE.at(numbers(0.5)), DISCRETE.at(numbers(0.45)))
    beta = 1 - (DISCRETE.at(numbers(0.5)).alpha / DISCRETE.at(numbers(0.45)).alpha) ** 2
    x = numbers([0.2])
    for v in (0.0, 0.3, 1.0):
        got = posterior(x, x, step, numbers([v])).log_variance
        small = posterior(x, x, step).log_variance
        assert float(got) == pytest.approx(float(v * beta.log() + (1 - v) * small), abs=1e-12)
    assert float(posterior(x, x, step).log_variance) == float(step.log_var_min)


class Small(nn.Module):
    """Two heads on one value: what is predicted, and the variance."""

    def __init__(self, outputs):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body, self.target = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)
            self.variance = nn.Conv2d(4, 2, 1) if outputs == 2 else None

    def forward(self, x, t, condition):
        hidden = torch.tanh(self.body(x) + t[:, None, None, None])
        parts = [self.target(hidden)]
        if self.variance is not None:
            parts.append(self.variance(hidden.detach()))
        return torch.cat(parts, dim=1)


def batch(count=6):
    x0 = torch.rand(count, 2, 3, 3, generator=rng()) * 2 - 1
    noise = torch.randn(count, 2, 3, 3, generator=rng(1))
    return x0, noise


@pytest.mark.parametrize("prediction_type", ["noise", "x0", "v"])
@pytest.mark.parametrize("schedule", [DiscreteSchedule(steps=1000), CosineSchedule()])
def test_the_bound_moves_the_variance_and_never_the_mean(prediction_type, schedule):
    config = ProcessConfig(schedule=schedule, prediction_type=prediction_type, variance="learned")
    process, network = config.build(), Small(2)
    x0, noise = batch()
    t = torch.tensor([0.001, 0.002, 0.1, 0.5, 0.9, 1.0])
    loss = hybrid_loss(network, process, x0, Condition(), t, noise)
    assert bool(torch.isfinite(loss.value).all())
    assert torch.allclose(loss.value, loss.metrics["simple"] + 0.001 * loss.metrics["bound_bits"])
    (0.001 * loss.metrics["bound_bits"]).mean().backward(retain_graph=True)
    assert network.target.weight.grad is None or not bool(network.target.weight.grad.any())
    assert bool(torch.isfinite(network.variance.weight.grad).all())
    assert bool(network.variance.weight.grad.any())
    bound_gradient = network.variance.weight.grad.clone()
    network.zero_grad()
    loss.value.mean().backward()
    assert torch.allclose(network.variance.weight.grad, bound_gradient)
    alone = torch.autograd.grad(
        simple_loss(network, process, x0, Condition(), t, noise).value.mean(), network.target.weight
    )[0]
    assert torch.allclose(network.target.weight.grad, alone)


def test_the_first_step_of_a_chain_is_scored_by_the_decoder():
    process = ProcessConfig(
        schedule=DiscreteSchedule(steps=1000), prediction_type="noise", variance="learned"
    ).build()
    x0, noise = batch(1)
    t = torch.tensor([0.001])
    network = Small(2)
    loss = hybrid_loss(network, process, x0, Condition(), t, noise)
    bound = loss.metrics["bound_bits"] / 1000
    x = process.add_noise(x0, t, noise)
    pred = process.prediction(network(x, t, Condition()), x, t)
    one, two = (process.schedule.at(numbers(k / 1000)) for k in (1, 2))
    small, large = reverse_step(two, one).log_var_min, (one.sigma**2).log()
    variance = pred.logvar_fraction * large + (1 - pred.logvar_fraction) * small
    wanted = -discretized_log_likelihood(x0, Gaussian(pred.x0, variance)).mean() / math.log(2)
    assert torch.allclose(bound, wanted.float(), rtol=1e-5)


def test_the_hybrid_loss_needs_a_learned_variance():
    x0, noise = batch(1)
    with pytest.raises(ValueError, match="learned"):
        hybrid_loss(Small(1), ProcessConfig().build(), x0, Condition(), torch.tensor([0.5]), noise)


@pytest.mark.parametrize(
    ("prediction_type", "weight"),
    [("noise", Snr()), ("x0", lambda m: m.snr * 0 + 1), ("v", VLoss())],
)
def test_the_simple_loss_is_a_weighted_error_of_x0(prediction_type, weight):
    process = ProcessConfig(prediction_type=prediction_type).build()
    x0, noise = batch(3)
    t, network = torch.tensor([0.2, 0.5, 0.8]), Small(1)
    simple = simple_loss(network, process, x0, Condition(), t, noise).value
    weighted = denoising_loss(network, process, x0, Condition(), t, noise, weight).value
    assert torch.allclose(simple, weighted, rtol=1e-4)


def test_weights_are_those_of_their_papers():
    here = CosineSchedule().at(numbers(0.1, 0.5, 0.9))
    snr, level = here.snr, here.sigma / here.alpha
    assert torch.allclose(MinSnr(gamma=5.0)(here), torch.minimum(snr, numbers(5.0)))
    assert torch.allclose(P2(gamma=1.0, k=1.0)(here) / snr, 1 / (1 + snr))
    assert torch.allclose(EDM(sigma_data=0.5)(here), (level**2 + 0.25) / (level * 0.5) ** 2)
    assert torch.allclose(Snr()(here), snr)


def test_strata_over_all_parts_hold_one_time_each():
    sampled = torch.cat(
        [Stratified().sample(8, rng(part), part=part, parts=4).t for part in range(4)]
    )
    assert sorted((sampled * 32).floor().int().tolist()) == list(range(32))
    discrete = Stratified(steps=32)
    steps = torch.cat([discrete.sample(8, rng(part), part=part, parts=4).t for part in range(4)])
    assert sorted((steps * 32).round().int().tolist()) == list(range(1, 33))


def test_uniform_times_fall_on_all_steps_and_on_no_other():
    sampled = Uniform(steps=10).sample(5000, rng()).t
    counts = (sampled * 10).round().int().bincount(minlength=11)
    assert counts[0] == 0
    assert bool((counts[1:] > 400).all())
    assert torch.allclose(sampled * 10, (sampled * 10).round(), atol=1e-5)


def test_levels_are_log_normal_under_edm():
    schedule = EDMSchedule()
    t = LogNormal().build(schedule).sample(20_000, rng()).t.double()
    logs = schedule.at(t).sigma.log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=3 * 1.2 / math.sqrt(20_000))
    assert float(logs.std()) == pytest.approx(1.2, abs=0.03)


def test_important_steps_are_sampled_more_often_with_less_weight():
    sampler = LossSecondMomentSampler(4, history=2, uniform=0.0)
    t = torch.tensor([0.25, 0.5, 0.75, 1.0]).repeat(2)
    assert sampler.probabilities.tolist() == [0.25] * 4
    sampler.update(t, torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(2))
    assert torch.allclose(sampler.probabilities, numbers(0.1, 0.2, 0.3, 0.4))
    sampled = sampler.sample(40_000, rng())
    loss = sampled.t * 4  # what it was updated with
    assert float((sampled.weight * loss).mean()) == pytest.approx(2.5, abs=1e-4)
    assert float((sampled.t == 1.0).float().mean()) == pytest.approx(0.4, abs=0.01)
    other = LossSecondMomentSampler(4, history=2, uniform=0.0)
    other.restore(sampler.state())
    assert torch.equal(other.probabilities, sampler.probabilities)
