"""Linear layers that keep less or read better."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.nn.linear import FEW, GeluLinear, Projection, packed


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1])
def test_a_few_rows_give_the_same_to_rounding(rows):
    torch.manual_seed(0)
    layer = Projection(48, 96)
    x = torch.randn(rows, 1, 48, generator=rng())
    with torch.no_grad():
        assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-6)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("gelu", ["tanh", "none"])
@pytest.mark.parametrize("autocast", [False, True])
def test_gelu_and_linear_in_one_give_the_same_gradients_and_keep_only_the_input(gelu, autocast):
    torch.manual_seed(0)
    layer = GeluLinear(48, 12)
    dtype = torch.bfloat16 if autocast else torch.float32
    x = torch.randn(2, 5, 48, generator=rng()).to(dtype).requires_grad_()
    kept = []

    def pack(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        got = layer(x, gelu)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = F.linear(F.gelu(x, approximate=gelu), layer.weight, layer.bias)
    assert torch.equal(got, wanted)
    assert sum(kept) == x.nbytes + layer.weight.nbytes
    seed = torch.randn(got.shape, generator=rng(1)).to(got.dtype)
    leaves = [x, *layer.parameters()]
    for one, other in zip(
        torch.autograd.grad(got, leaves, seed),
        torch.autograd.grad(wanted, leaves, seed),
        strict=True,
    ):
        assert one.dtype == other.dtype
        assert torch.allclose(one.float(), other.float(), atol=1e-2 if autocast else 1e-6)
    with torch.no_grad():
        assert torch.allclose(layer(x.float(), gelu), wanted.float(), atol=0.02)


def test_they_start_like_plain_layers():
    for kind in (Projection, GeluLinear):
        torch.manual_seed(0)
        ours = kind(6, 4)
        torch.manual_seed(0)
        plain = nn.Linear(6, 4)
        assert torch.equal(ours.weight, plain.weight)
        assert torch.equal(ours.bias, plain.bias)


@pytest.mark.parametrize("rows", [1, 5, 64, 65])
@pytest.mark.parametrize("autocast", [False, True])
def test_packed_weights_give_the_same_bits(rows, autocast):
    torch.manual_seed(0)
    layers = nn.ModuleList([Projection(48, 96), GeluLinear(96, 40)])
    if not autocast:
        layers.bfloat16()
    x = torch.randn(rows, 48, generator=rng()).to(layers[0].weight.dtype)

    def run():
        return layers[1](layers[0](x), "tanh")

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = run()
        with packed(layers):
            assert layers[0].packed is not None or not bf16_products()
            assert torch.equal(run(), plain)
    assert layers[0].packed is None


def bf16_products():
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_nothing_is_packed_in_fp32_with_gradients_or_when_it_is_too_large(monkeypatch):
    layer = Projection(48, 96)
    with torch.no_grad(), packed(layer):
        assert layer.packed is None
    layer.bfloat16()
    with packed(layer):
        assert layer.packed is None
    monkeypatch.setattr("models.nn.linear.PACKED_WEIGHTS", 100)
    with torch.no_grad(), packed(layer):
        assert layer.packed is None
