"""Intervals against published values and by their coverage."""

import pytest
import torch

from evaluation.metrics.intervals import bootstrap_mean, proportion, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_equal_published_ones(successes, n, low, high):
    score = wilson(successes, n)
    assert score.value == pytest.approx(successes / n)
    assert (score.low, score.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_wilson_is_symmetric_and_touches_the_ends_exactly():
    nothing, everything = wilson(0, 40), wilson(40, 40)
    assert (nothing.low, everything.high) == (0.0, 1.0)
    assert nothing.high == pytest.approx(1.0 - everything.low)
    assert nothing.high > 0.0


def test_fractional_successes_count_captions():
    score = proportion([0.5, 1.0, 0.0, 0.5])
    assert (score.value, score.n) == (0.5, 4)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_bootstrap_intervals_cover_the_true_mean_about_19_times_in_20():
    rng = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        score = bootstrap_mean(torch.randn(60, generator=rng) + 3.0, rng, resamples=400)
        covered += score.low <= 3.0 <= score.high
    assert 174 <= covered <= 199


def test_bootstrap_repeats_under_the_same_generator_seed():
    values = torch.arange(30.0)
    first, second = (bootstrap_mean(values, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == second
    assert first.value == pytest.approx(14.5)
