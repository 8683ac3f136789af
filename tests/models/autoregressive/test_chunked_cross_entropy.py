"""The loss without logits equals the loss with them."""

import pytest
import torch

from models.autoregressive import chunked_cross_entropy as module
from models.autoregressive.chunked_cross_entropy import chunked_cross_entropy, uses_chunks
from models.autoregressive.prior import PriorConfig, weighted

CONFIG = PriorConfig(text_vocab=31, text_length=8, image_vocab=47, grid=(4, 4), width=16, heads=1)


@pytest.fixture
def small_limits(monkeypatch):
    """Chunks of two rows, and no loss too small for them."""
    monkeypatch.setattr(module, "CHUNK", 100)
    monkeypatch.setattr(module, "LARGE", 1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("bf16", "tolerance"), [(False, 1e-6), (True, 2e-2)])
def test_loss_and_gradients_are_those_of_kept_logits(small_limits, bf16, tolerance, prior_loss):
    torch.manual_seed(0)
    model = CONFIG.build()
    text = torch.randint(31, (9, 8), generator=rng())
    codes = torch.randint(47, (9, 16), generator=rng(1))
    weights = list(model.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = model(text, codes, codes)
        assert uses_chunks(model.image_head, torch.zeros(9, 16, 16))
        wanted, text_loss, image_loss = prior_loss(model(text, codes), text, codes)
    assert torch.allclose(losses.text, text_loss, rtol=tolerance)
    assert torch.allclose(losses.image, image_loss, rtol=tolerance)
    got = torch.autograd.grad(3 * weighted(losses), weights)
    for one, other in zip(got, torch.autograd.grad(3 * wanted, weights), strict=True):
        assert torch.allclose(one, other, atol=tolerance * float(other.abs().max()) + 1e-8)


def test_what_is_read_may_differ_from_what_is_predicted(prior_loss):
    torch.manual_seed(0)
    model = CONFIG.build()
    text = torch.randint(31, (2, 8), generator=rng())
    codes, read = torch.randint(47, (2, 2, 16), generator=rng(1))
    losses = model(text, read, codes)
    wanted = prior_loss(model(text, read), text, codes)
    assert torch.equal(losses.image, wanted[2])
    assert torch.equal(losses.text, wanted[1])


def test_few_logits_fp16_replaced_heads_and_weights_elsewhere_take_the_plain_way(small_limits):
    layer = torch.nn.Linear(16, 47)
    hidden = torch.zeros(4, 16, 16)
    assert uses_chunks(layer, hidden)
    assert not uses_chunks(layer, hidden[:, :8])
    assert not uses_chunks(layer, hidden.half())
    with torch.no_grad():
        assert not uses_chunks(layer, hidden)
    layer.forward = layer.forward
    assert not uses_chunks(layer, hidden)
    del layer.forward
    assert uses_chunks(layer, hidden)
    layer.weight.data = torch.empty(0)
    assert not uses_chunks(layer, hidden)


def test_a_loss_without_logits_keeps_far_less_for_backward(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 1)
    layer = torch.nn.Linear(16, 500)
    hidden = torch.randn(4, 64, 16, generator=rng()).requires_grad_()
    target = torch.randint(500, (4, 64), generator=rng(1))

    def kept(large):
        monkeypatch.setattr(module, "LARGE", large)
        found = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: found.append(tensor.nbytes), lambda tensor: tensor
        ):
            chunked_cross_entropy(layer, hidden, target)
        return sum(found)

    assert kept(1) < kept(10**9) / 5
