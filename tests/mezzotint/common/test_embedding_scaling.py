"""Normalisations of CLIP embeddings, and records that must agree."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mezzotint.common.embedding_scaling import (
    EmbeddingMoments,
    EmbeddingRecord,
    EmbeddingScaling,
    require_clip,
    require_equal_embeddings,
)
from mezzotint.common.errors import UserError

ONE, OTHER = "1" * 64, "2" * 64


def embeddings(seed, samples, dim=5):
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(size=dim), 0.1 + rng.random(dim), (samples, dim)).astype("f4")


def scaling(kind, values=None):
    return EmbeddingMoments.of(embeddings(0, 40) if values is None else values).scaling(kind, "set")


def record(digest=ONE, kind="mean_std", **changes):
    return EmbeddingRecord(model="runs/clip", digest=digest, scaling=scaling(kind), **changes)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.sets(st.integers(1, 11)))
def test_a_partition_has_the_statistics_of_the_whole(seed, samples, cuts):
    values = embeddings(seed, samples) + 100
    bounds = [0, *sorted(cut for cut in cuts if cut < samples), samples]
    found, merged = EmbeddingMoments.none(5), EmbeddingMoments.none(5)
    for start, end in itertools.pairwise(bounds):
        found = found.with_rows(values[start:end])
        merged += EmbeddingMoments.of(values[start:end])
    whole = EmbeddingMoments.of(values)
    assert np.array_equal(found.mean, whole.mean)
    assert np.array_equal(found.squares, whole.squares)
    assert merged.mean == pytest.approx(whole.mean, rel=1e-13)
    assert merged.squares == pytest.approx(whole.squares, rel=1e-9)
    exact = values.astype(np.float64)
    measured = found.scaling("mean_std", "set")
    assert measured.samples == samples
    assert measured.mean == pytest.approx(exact.mean(0), rel=1e-13)
    assert measured.std == pytest.approx(exact.std(0), rel=1e-9)


def test_mean_std_gives_every_dimension_mean_0_and_deviation_1():
    values = torch.from_numpy(embeddings(0, 40))
    found = scaling("mean_std")
    normal = found.normalize(values)
    assert torch.allclose(normal.mean(0), torch.zeros(5), atol=1e-6)
    assert torch.allclose(normal.std(0, correction=0), torch.ones(5), atol=1e-6)
    assert torch.allclose(found.denormalize(normal), values, atol=1e-6)


@pytest.mark.parametrize(("kind", "length"), [("openai_17.2", 17.2), ("l2_sqrt_d", 5**0.5)])
def test_directions_have_one_length(kind, length):
    values = torch.from_numpy(embeddings(0, 40))
    found = scaling(kind)
    assert found.mean is None
    normal = found.normalize(values[:, None])
    assert normal.shape == (40, 1, 5)
    assert torch.allclose(normal.norm(dim=-1), torch.full((40, 1), length), rtol=1e-6)
    units = torch.nn.functional.normalize(values, dim=1)
    assert torch.allclose(found.denormalize(normal[:, 0]), units, atol=1e-6)


def test_a_unit_vector_of_d_dimensions_gets_deviation_1_by_l2_sqrt_d():
    values = np.random.default_rng(0).normal(size=(400, 64)).astype("f4")
    normal = scaling("l2_sqrt_d", values).normalize(torch.from_numpy(values))
    assert float(normal.square().mean()) == pytest.approx(1.0, rel=1e-5)


def test_a_record_survives_json_bit_by_bit():
    made = record(weights=OTHER)
    assert EmbeddingRecord.model_validate_json(made.model_dump_json()) == made
    assert (made.text_digest, record().text_digest) == (OTHER, ONE)


def test_a_dimension_of_one_value_has_no_mean_std():
    values = embeddings(0, 8)
    values[:, 3] = 0.5
    with pytest.raises(UserError, match="set: dimension 3 of the image embeddings has one value"):
        scaling("mean_std", values)
    assert scaling("openai_17.2", values).dim == 5


def test_statistics_belong_to_mean_std_alone():
    for wrong in (
        {"kind": "mean_std"},
        {"kind": "l2_sqrt_d", "mean": (0.0, 0.0), "std": (1.0, 1.0)},
        {"kind": "mean_std", "mean": (0.0,), "std": (1.0,)},
        {"kind": "mean_std", "mean": (0.0, 0.0), "std": (1.0, 0.0)},
    ):
        with pytest.raises(ValidationError):
            EmbeddingScaling(dim=2, samples=1, **wrong)


def test_embeddings_of_another_length_are_refused():
    with pytest.raises(UserError, match="embeddings have 4 values and their normalisation is of 5"):
        scaling("mean_std").normalize(torch.zeros(2, 4))


def test_records_of_another_clip_or_normalisation_are_refused_with_both_values():
    require_equal_embeddings({"prior": record(), "decoder": record()})
    one, other = f"CLIP {ONE[:12]} ", OTHER[:12]
    with pytest.raises(UserError, match=f"prior is of the embeddings of the {one}.*{other}"):
        require_equal_embeddings({"prior": record(), "decoder": record(OTHER)})
    with pytest.raises(UserError, match=r"prior normalises embeddings by mean_std .* l2_sqrt_d"):
        require_equal_embeddings({"prior": record(), "decoder": record(kind="l2_sqrt_d")})
    moved = scaling("mean_std", embeddings(1, 40))
    other_set = record().model_copy(update={"scaling": moved})
    with pytest.raises(UserError, match=r"prior normalises embeddings by mean_std .* mean_std"):
        require_equal_embeddings({"prior": record(), "decoder": other_set})
    with pytest.raises(UserError, match="decoder: records no CLIP embeddings"):
        require_equal_embeddings({"prior": record(), "decoder": None})
    with pytest.raises(
        UserError, match=f"runs/b: is the CLIP {other}, but the prior is of .*{ONE[:12]}"
    ):
        require_clip(record(), OTHER, "runs/b", "the prior")
