import math

import pytest
from pydantic import ValidationError

from trainer.optimizers.schedules import Cosine, LearningRate, Linear, OptimizerConfig


def test_cosine_has_dalles_endpoints_and_midpoint():
    temperature = Cosine(start=1.0, end=1 / 16, steps=150_000)
    assert temperature.at(0) == 1.0
    assert temperature.at(75_000) == pytest.approx(0.53125)
    assert temperature.at(150_000) == pytest.approx(0.0625)
    assert temperature.at(10**7) == pytest.approx(0.0625)
    kl = Cosine(start=0.0, end=6.6, steps=5_000)
    assert kl.at(5_000) == pytest.approx(6.6)


def test_linear_stays_at_its_end():
    assert Linear(start=2.0, end=0.0, steps=4).at(1) == 1.5
    assert Linear(start=2.0, end=0.0, steps=4).at(9) == 0.0


def test_learning_rate_warms_up_and_decays_to_its_final_share():
    rate = LearningRate(peak=1e-3, warmup=10, final=0.1)
    assert rate.at(0, 100) == pytest.approx(1e-4)
    assert rate.at(9, 100) == pytest.approx(1e-3)
    assert rate.at(55, 100) == pytest.approx(1e-3 * (0.1 + 0.9 * 0.5))
    assert rate.at(100, 100) == pytest.approx(1e-4)
    assert LearningRate(peak=1.0, decay="constant").at(99, 100) == 1.0
    assert math.isclose(LearningRate(peak=1.0, decay="linear").at(25, 100), 0.75)


def test_impossible_betas_are_refused():
    with pytest.raises(ValidationError, match="must lie in"):
        OptimizerConfig(lr=LearningRate(peak=1.0), betas=(0.9, 1.0))


def test_a_learning_rate_may_reach_its_end_before_the_run_does():
    dalle = LearningRate(peak=1e-4, final=0.0125, until=1_200_000)
    for step in (1_200_000, 2_999_999):
        assert dalle.at(step, 3_000_000) == pytest.approx(1.25e-6)
    assert dalle.at(600_000, 3_000_000) == pytest.approx(0.5 * (1e-4 + 1.25e-6))
    with pytest.raises(ValidationError, match="until 5 must lie after warmup 5"):
        LearningRate(peak=1.0, warmup=5, until=5)
