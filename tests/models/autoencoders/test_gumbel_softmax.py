"""Relaxed samples of a large vocabulary, against the plain expressions."""

import pytest
import torch

from models.autoencoders import gumbel_softmax as pieces
from models.autoencoders.bottleneck import GumbelBottleneck, kl_to_uniform
from models.nn.random import gumbel_like


@pytest.fixture
def in_pieces(monkeypatch):
    """Seven rows at a time, of a number that seven does not divide."""
    monkeypatch.setattr(pieces, "CHUNK_CPU", 7 * 50)


def plain(logits, temperature, rng):
    noise = gumbel_like(logits.movedim(1, -1).reshape(-1, logits.shape[1]), rng)
    noise = noise.view(len(logits), *logits.shape[2:], -1).movedim(-1, 1)
    return ((logits + noise) / temperature).softmax(dim=1), kl_to_uniform(logits)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_sample_in_pieces_is_the_plain_one_and_so_are_its_gradients(in_pieces, layout):
    rng = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 50, 2, 5, generator=rng)
    logits = logits.contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(logits.shape, generator=rng)
    value, negative_entropy, codes = pieces.gumbel_softmax(
        logits, 0.7, torch.Generator().manual_seed(1)
    )
    divergence = negative_entropy + torch.tensor(50.0).log()
    (gradient,) = torch.autograd.grad((value * weight).sum() + divergence.mean(), logits)
    expected, kl = plain(logits, 0.7, torch.Generator().manual_seed(1))
    (wanted,) = torch.autograd.grad((expected * weight).sum() + kl.mean(), logits)
    assert torch.allclose(value, expected, atol=1e-6)
    assert torch.allclose(divergence, kl, atol=1e-5)
    assert torch.equal(codes, logits.argmax(dim=1))
    assert torch.allclose(gradient, wanted, atol=1e-6)


def test_logits_far_apart_give_finite_gradients(in_pieces):
    logits = torch.zeros(1, 50, 2, 2)
    logits[:, 3] = 300.0
    logits.requires_grad_()
    value, negative_entropy, _ = pieces.gumbel_softmax(
        logits, 1 / 16, torch.Generator().manual_seed(1)
    )
    assert torch.allclose(negative_entropy, torch.zeros(1, 2, 2))
    (gradient,) = torch.autograd.grad(value.square().sum() + negative_entropy.sum(), logits)
    assert gradient.isfinite().all()


def test_the_bottleneck_takes_large_vocabularies_in_pieces_with_the_same_identities():
    vocab, grid = 8192, 12
    rng = torch.Generator().manual_seed(0)
    bottleneck = GumbelBottleneck(temperature=0.5)
    uniform = bottleneck(torch.zeros(1, vocab, grid, grid), rng)
    assert uniform.value.numel() > pieces.SMALL
    assert torch.allclose(uniform.value.sum(dim=1), torch.ones(1, grid, grid), atol=1e-5)
    assert float(uniform.loss) == pytest.approx(0, abs=1e-5)
    certain = torch.full((1, vocab, grid, grid), -100.0)
    certain[:, 5] = 100.0
    latent = bottleneck(certain, rng)
    assert float(latent.loss) == pytest.approx(9.0109, abs=1e-4)
    assert latent.usage[5] == grid * grid
