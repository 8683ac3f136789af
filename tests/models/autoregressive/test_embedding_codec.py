"""Principal components in buckets."""

import pytest
import torch

from mezzotint.common.errors import UserError
from models.autoregressive.embedding_codec import EmbeddingCodec, measure


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted(vectors, components, buckets=1024, levels=8, similarities=None):
    if similarities is None:
        similarities = torch.linspace(0, 1, 101)
    codec = EmbeddingCodec(vectors.shape[1], components, buckets, levels)
    codec.use(measure(vectors, similarities, components=components, levels=levels))
    return codec


def test_319_components_keep_vectors_of_that_rank():
    vectors = noise(600, 319, seed=1) @ noise(319, 1024, seed=2) / 319**0.5 + 0.3
    codec = fitted(vectors, 319)
    assert codec.is_measured
    away = codec.decode(codec.encode(vectors)) - vectors
    assert float(away.square().mean() / vectors.var()) < 0.01
    gram = codec.basis @ codec.basis.T
    torch.testing.assert_close(gram, torch.eye(319), rtol=0, atol=1e-5)
    spread = ((vectors - codec.mean) @ codec.basis.T).var(dim=0)
    assert bool((spread.diff() <= 1e-5).all())


@pytest.mark.parametrize("buckets", [2, 16, 1024])
def test_a_code_is_at_most_half_a_bucket_away(buckets):
    vectors = noise(200, 12)
    codec = fitted(vectors, 12, buckets)
    codes = codec.encode(vectors)
    assert int(codes.min()) == 0
    assert int(codes.max()) == buckets - 1
    away = (codec.decode(codes) - vectors) @ codec.basis.T
    half = (codec.high - codec.low) / buckets / 2
    assert bool((away.abs() <= half * 1.001 + 1e-6).all())
    assert torch.equal(codec.encode(codec.decode(codes)), codes)


def test_what_is_outside_takes_the_last_bucket():
    codec = fitted(noise(50, 4), 4, 8)
    far = codec.mean + 100 * codec.basis[0]
    assert int(codec.encode(far[None])[0, 0]) == 7


def test_levels_are_equally_frequent():
    similarities = noise(8000).sigmoid()
    codec = fitted(noise(50, 4), 4, similarities=similarities)
    share = torch.bincount(codec.level(similarities), minlength=8) / 8000
    torch.testing.assert_close(share, torch.full((8,), 0.125), rtol=0, atol=1e-3)
    assert codec.level(torch.tensor([-1.0, 2.0])).tolist() == [0, 7]


def test_codes_are_exact_whatever_the_precision_of_training():
    vectors = noise(64, 12)
    codec = fitted(vectors, 12)
    codes, decoded = codec.encode(vectors), codec.decode(codec.encode(vectors))
    codec.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.encode(vectors), codes)
        assert torch.equal(codec.decode(codes), decoded)


def test_statistics_are_noted_where_there_is_no_memory_yet():
    from models.nn.initialization import materialize

    statistics = measure(noise(50, 4), torch.linspace(0, 1, 9), components=3, levels=4)
    with torch.device("meta"):
        codec = EmbeddingCodec(4, 3, 8, 4)
    codec.use(statistics)
    assert list(materialize(codec, 0, device=torch.device("cpu"))) == []
    for name, value in vars(statistics).items():
        assert torch.equal(getattr(codec, name), value)


@pytest.mark.parametrize(
    ("vectors", "message"), [(torch.ones(1, 4), "the set has 1"), (torch.ones(9, 4), "are equal")]
)
def test_a_set_without_variety_is_refused(vectors, message):
    with pytest.raises(UserError, match=message):
        measure(vectors, torch.zeros(3), components=2, levels=2)
