"""Statistics of latents: of any partition of a set they are those of the whole."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import LatentMoments, LatentScaling, merged

SEEDS = st.integers(0, 2**32 - 1)


def latents(seed, samples, offset=0.0):
    rng = np.random.default_rng(seed)
    values = rng.normal(offset, 1 + rng.random(), (samples, 2, 3, 3)).astype(np.float32)
    return values, rng.random(values.shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 12), st.sets(st.integers(1, 11)), st.booleans(), SEEDS)
def test_a_partition_in_any_order_has_the_statistics_of_the_whole(
    seed, samples, cuts, gaussian, order
):
    values, deviations = latents(seed, samples, offset=100.0)
    whole = LatentMoments.of(values, deviations if gaussian else None)
    bounds = [0, *sorted(cut for cut in cuts if cut < samples), samples]
    parts = [
        LatentMoments.of(values[start:end], deviations[start:end] if gaussian else None)
        for start, end in itertools.pairwise(bounds)
    ]
    np.random.default_rng(order).shuffle(parts)
    found = merged(parts)
    assert (found.samples, found.values) == (whole.samples, whole.values)
    assert found.mean == pytest.approx(whole.mean, rel=1e-13)
    assert found.squares == pytest.approx(whole.squares, rel=1e-11)
    exact = values.astype(np.float64)
    variance = exact.var() + (np.square(deviations.astype(np.float64)).mean() if gaussian else 0)
    assert found.squares / found.values == pytest.approx(variance, rel=1e-10)


def test_statistics_of_a_gaussian_first_stage_are_those_of_its_samples():
    values, deviations = latents(0, 2000)
    scaling = LatentMoments.of(values, deviations).scaling("set")
    sampled = torch.from_numpy(values) + torch.from_numpy(deviations) * torch.randn(
        values.shape, generator=torch.Generator().manual_seed(0)
    )
    normal = scaling.normalize(sampled)
    assert abs(float(normal.mean())) < 0.02
    assert float(normal.std()) == pytest.approx(1.0, abs=0.02)
    assert torch.allclose(scaling.denormalize(normal), sampled, atol=1e-5)
    assert (scaling.shift, scaling.scale, scaling.samples) == (scaling.mean, 1 / scaling.std, 2000)


def test_equal_latents_are_refused():
    with pytest.raises(UserError, match="set: all latents have the value 3, so nothing can be"):
        LatentMoments.of(np.full((4, 2, 2), 3.0)).scaling("set")
    with pytest.raises(ValueError, match="greater than 0"):
        LatentScaling(mean=0, std=0, samples=1)
