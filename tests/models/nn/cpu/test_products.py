"""Linear layers by oneDNN's products are torch's, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from models.nn.cpu import plain_torch, products
from models.nn.cpu.dispatch import linear
from models.nn.linear import GegluLinear, Linear, SplitLinear


@pytest.fixture(autouse=True)
def _on_amd(monkeypatch):
    monkeypatch.setattr(products, "IS_INTEL", False)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def results(layer, x, leaves):
    made = layer(x)
    out = torch.cat(made, dim=-1) if isinstance(made, tuple) else made
    return out, *torch.autograd.grad(out, leaves, noise(*out.shape, seed=1))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    "layer",
    [Linear(6, 8), Linear(6, 8, bias=False), SplitLinear(6, 4, 2), GegluLinear(6, 8)],
    ids=["linear", "without bias", "split", "geglu"],
)
def test_outputs_and_gradients_are_those_of_torch(layer, trained):
    layer.requires_grad_(trained)
    x = noise(2, 10, 12 if isinstance(layer, GegluLinear) else 6).requires_grad_()
    leaves = (x, *layer.parameters()) if trained else (x,)
    assert products.is_supported(x, layer.weight)
    found = results(layer, x, leaves)
    with plain_torch("products"):
        assert not products.is_supported(x, layer.weight)
        expected = results(layer, x, leaves)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    with torch.no_grad():
        made = layer(x)
        out = torch.cat(made, dim=-1) if isinstance(made, tuple) else made
        assert torch.allclose(out, expected[0], atol=1e-5)


def test_few_rows_and_other_precisions_are_left_to_torch():
    weight = noise(4, 6)
    assert not products.is_supported(noise(products.ROWS - 1, 6), weight)
    assert not products.is_supported(noise(16, 6).bfloat16(), weight.bfloat16())
    few = noise(3, 6)
    assert torch.equal(linear(few, weight, None), F.linear(few, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert not products.is_supported(noise(16, 6), weight)
