"""Guidance on mixtures whose conditional and guided densities are known."""

import math

import pytest
import torch
from closed_forms import Mixture, MixtureDenoiser, exact_trace, score

from models.diffusion.condition import Condition
from models.diffusion.guidance import (
    classifier_gradient,
    with_classifier_guidance,
    with_condition,
    with_guidance,
    with_guidance_interval,
    with_guidance_rescale,
    with_mean_gradient,
    without_class,
    without_text,
)
from models.diffusion.likelihood import log_likelihood
from models.diffusion.parameterization import Prediction, from_noise, to_v
from models.diffusion.schedules.discrete import DiscreteSchedule
from models.diffusion.schedules.schedule import CosineSchedule
from models.diffusion.solvers.ddpm import DDPM
from models.diffusion.solvers.heun import Heun
from models.diffusion.solvers.times import uniform_log_snr_times, uniform_times
from models.diffusion.thresholding import DynamicThresholding, StaticThresholding


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


ALL = Mixture(
    numbers([-1.0, 0.2], [0.8, 0.9], [0.4, -1.0]), numbers(0.3, 0.5, 0.4), numbers(0.3, 0.5, 0.2)
)
CLASS = 1
ONE = ALL.only(CLASS)
SCHEDULE = CosineSchedule()
FREE, CONDITIONAL = MixtureDenoiser(ALL, SCHEDULE), MixtureDenoiser(ONE, SCHEDULE)
X = torch.randn(32, 2, generator=rng(), dtype=torch.float64)
T = torch.linspace(0.1, 0.95, 32, dtype=torch.float64)


def classify(x, t):
    return ALL.log_class(x, SCHEDULE.at(t))[:, CLASS]


def log_guided(x, t, scale):
    """ln of p(x_t) (p(x_t | class) / p(x_t))^scale, up to a constant."""
    here = SCHEDULE.at(t)
    free, conditional = ALL.log_density(x, here), ONE.log_density(x, here)
    return free + scale * (conditional - free)


def gradient(f, x):
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(f(x).sum(), x)[0]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_the_guided_score_is_that_of_the_guided_density(scale):
    got = score(with_guidance(CONDITIONAL, FREE, scale)(X, T, None), SCHEDULE.at(T))
    wanted = gradient(lambda x: log_guided(x, T, scale), X)
    assert torch.allclose(got, wanted, atol=1e-8)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_guidance_by_the_true_classifier_is_classifier_free_guidance(scale):
    by_classifier = with_classifier_guidance(FREE, SCHEDULE, classify, scale)(X, T, None)
    free = with_guidance(CONDITIONAL, FREE, scale)(X, T, None)
    assert torch.allclose(by_classifier.x0, free.x0, atol=1e-9)
    assert torch.allclose(by_classifier.noise, free.noise, atol=1e-9)


def test_the_density_guided_by_the_true_classifier_is_the_conditional_one():
    points = ONE.sample(24, rng(1))
    guided = with_classifier_guidance(FREE, SCHEDULE, classify, 1.0)
    times = uniform_log_snr_times(SCHEDULE, 256, first=0.0, last=1.0)
    got = log_likelihood(Differentiable(), SCHEDULE, points, times, None, exact_trace)
    wanted = ONE.log_density(points, SCHEDULE.at(numbers(0.0)))
    assert float((got.log_density - wanted).abs().max()) < 5e-3
    # and the wrapper is that denoiser
    assert torch.allclose(guided(X, T, None).noise, Differentiable()(X, T, None).noise, atol=1e-9)


class Differentiable:
    """The classifier-guided denoiser with its gradient written out, so that it has one itself."""

    def __call__(self, x, t, condition):
        here = SCHEDULE.at(t)
        with torch.enable_grad():
            place = x if x.requires_grad else x.clone().requires_grad_(True)
            (slope,) = torch.autograd.grad(classify(place, t).sum(), place, create_graph=True)
        pred = FREE(x, t, condition)
        return from_noise(pred.noise - here.broadcast_to(x).sigma * slope, x, here)


def test_samples_guided_by_the_true_classifier_are_those_of_the_class():
    count = 4000
    x = torch.randn(count, 2, generator=rng(2), dtype=torch.float64)
    guided = with_classifier_guidance(FREE, SCHEDULE, classify, 1.0)
    times = uniform_log_snr_times(SCHEDULE, 40)
    got = Heun().solve(SCHEDULE, guided, x, times, None, rng())
    error = 3 * 0.5 / math.sqrt(count)
    assert float((got.mean(dim=0) - ONE.means[0]).abs().max()) < error
    assert torch.allclose(got.T.cov(), 0.25 * torch.eye(2).double(), atol=0.02)


def test_the_gradient_of_a_classifier_is_that_of_central_differences():
    got = classifier_gradient(classify, 2.0)(X, T)
    h = 1e-5
    for axis in range(2):
        nudge = h * torch.eye(2, dtype=torch.float64)[axis]
        difference = 2.0 * (classify(X + nudge, T) - classify(X - nudge, T)) / (2 * h)
        assert float((got[:, axis] - difference).abs().max()) < 1e-6


@pytest.mark.parametrize("variance", ["smallest", "largest"])
def test_ancestral_steps_move_their_mean_by_variance_times_gradient(variance):
    times = numbers(0.5, 0.4)
    scale = 3.0
    plain = DDPM(variance=variance).solve(SCHEDULE, FREE, X, times, None, rng(3))
    slope = classifier_gradient(classify, scale)
    moved = DDPM(variance=variance).solve(
        SCHEDULE, with_mean_gradient(FREE, slope), X, times, None, rng(3)
    )
    now, then = SCHEDULE.at(times[0]), SCHEDULE.at(times[1])
    fresh = now.sigma**2 - (now.alpha / then.alpha) ** 2 * then.sigma**2
    sigma = fresh if variance == "largest" else fresh * then.sigma**2 / now.sigma**2
    wanted = scale * sigma * gradient(lambda x: classify(x, numbers(0.5).expand(len(x))), X)
    assert torch.allclose(moved - plain, wanted, atol=1e-12)


def test_no_scale_is_no_classifier_bit_for_bit():
    assert with_classifier_guidance(FREE, SCHEDULE, classify, 0.0) is FREE
    plain = DDPM().solve(SCHEDULE, FREE, X, uniform_times(4), None, rng())
    silent = with_mean_gradient(FREE, classifier_gradient(classify, 0.0))
    assert torch.equal(DDPM().solve(SCHEDULE, silent, X, uniform_times(4), None, rng()), plain)


def counting(denoiser, calls, name):
    def denoise(x, t, condition):
        calls.append(name)
        return denoiser(x, t, condition)

    return denoise


@pytest.mark.parametrize(("scale", "branch"), [(1.0, CONDITIONAL), (0.0, FREE)])
def test_one_and_zero_are_one_branch_bit_for_bit(scale, branch):
    got = with_guidance(CONDITIONAL, FREE, scale)(X.float(), T.float(), None)
    wanted = branch(X.float(), T.float(), None)
    assert torch.equal(got.x0, wanted.x0)
    assert torch.equal(got.noise, wanted.noise)


def test_guidance_in_an_interval_leaves_other_times_alone():
    calls = []
    wrapped = with_guidance_interval(
        counting(CONDITIONAL, calls, "c"), counting(FREE, calls, "u"), 3.0, first=0.3, last=0.6
    )
    full, plain = with_guidance(CONDITIONAL, FREE, 3.0)(X, T, None), CONDITIONAL(X, T, None)
    inside = (T >= 0.3) & (T <= 0.6)
    got = wrapped(X, T, None)
    assert torch.equal(got.x0[inside], full.x0[inside])
    assert torch.equal(got.x0[~inside], plain.x0[~inside])
    calls.clear()
    late = torch.full_like(T, 0.9)
    assert torch.equal(wrapped(X, late, None).noise, CONDITIONAL(X, late, None).noise)
    assert calls == ["c"]
    calls.clear()
    middle = torch.full_like(T, 0.5)
    assert torch.equal(
        wrapped(X, middle, None).noise, with_guidance(CONDITIONAL, FREE, 3.0)(X, middle, None).noise
    )
    assert calls == ["c", "u"]


def test_rescaling_gives_v_the_conditional_deviation():
    x = torch.randn(5, 40, generator=rng(), dtype=torch.float64)
    t = torch.linspace(0.2, 0.8, 5, dtype=torch.float64)
    here = SCHEDULE.at(t)

    def conditional(x, t, condition):
        return from_noise(0.4 * x + 0.1, x, SCHEDULE.at(t))

    def free(x, t, condition):
        return from_noise(0.7 * x.sin(), x, SCHEDULE.at(t))

    strong = with_guidance(conditional, free, 5.0)
    v, aim = to_v(strong(x, t, None), here), to_v(conditional(x, t, None), here)
    got = with_guidance_rescale(strong, conditional, SCHEDULE, 1.0)(x, t, None)
    assert torch.allclose(to_v(got, here).std(dim=1), aim.std(dim=1))
    assert torch.allclose(here.add_noise(got.x0, got.noise), x)
    half = with_guidance_rescale(strong, conditional, SCHEDULE, 0.5)(x, t, None)
    assert torch.allclose(to_v(half, here), (to_v(got, here) + v) / 2)
    assert with_guidance_rescale(strong, conditional, SCHEDULE, 0.0) is strong


def shows_caption(x, t, condition):
    return Prediction(x * 0 + condition.text.double().mean(), x * 0)


def test_a_negative_caption_replaces_the_empty_one():
    wanted, unwanted = Condition(text=torch.full((1, 3), 5)), Condition(text=torch.full((1, 3), 2))
    x, t = torch.zeros(1, 2).double(), torch.full((1,), 0.5).double()
    away = with_guidance(shows_caption, with_condition(shows_caption, unwanted), 3.0)
    assert away(x, t, wanted).x0.tolist() == [[11.0, 11.0]]
    empty = with_guidance(shows_caption, without_text(shows_caption), 3.0)
    assert empty(x, t, wanted).x0.tolist() == [[15.0, 15.0]]


def test_wrappers_compose():
    guided = with_classifier_guidance(
        with_guidance(CONDITIONAL, FREE, 2.0), SCHEDULE, classify, 1.0
    )
    got = score(guided(X, T, None), SCHEDULE.at(T))
    # scale 2 and the classifier's 1 more are scale 3
    assert torch.allclose(got, gradient(lambda x: log_guided(x, T, 3.0), X), atol=1e-8)
    kept = StaticThresholding().wrap(guided, SCHEDULE)(X, T, None)
    assert float(kept.x0.abs().max()) <= 1.0


def test_dynamic_thresholding_divides_by_the_percentile_of_each_sample():
    schedule = DiscreteSchedule()
    x0 = torch.linspace(0.0, 4.0, 201, dtype=torch.float64).expand(2, -1) * numbers([1.0], [0.1])

    def denoise(x, t, condition):
        return Prediction(x0, x)

    x, t = torch.randn(2, 201, generator=rng(), dtype=torch.float64), numbers(0.5, 0.5)
    got = DynamicThresholding(percentile=0.5).wrap(denoise, schedule)(x, t, None)
    assert torch.allclose(got.x0[0], (x0[0] / 2).clamp(max=1))
    assert torch.equal(got.x0[1], x0[1])
    assert torch.allclose(schedule.at(t).add_noise(got.x0, got.noise), x)


def test_the_unconditional_side_of_class_guidance_gets_the_null_label():
    def shows_label(x, t, condition):
        return Prediction(condition.label.double()[:, None], x)

    condition = Condition(label=torch.tensor([0, 2, 5]), text=torch.ones(3, 4, dtype=torch.int64))
    both = with_guidance(shows_label, without_class(shows_label, 9), 3.0)
    assert both(X[:3], T[:3], condition).x0.flatten().tolist() == [
        9 + 3 * (n - 9) for n in (0, 2, 5)
    ]
    assert torch.equal(condition.without_class(9).text, condition.text)
    assert Condition(text=condition.text).without_class(9).label is None
