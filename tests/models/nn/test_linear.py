"""Linear layers that keep less or read better."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.nn.cpu.linear import PACKED_ROWS, MkldnnLinear
from models.nn.linear import GeluLinear


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


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
    torch.manual_seed(0)
    ours = GeluLinear(6, 4)
    torch.manual_seed(0)
    plain = nn.Linear(6, 4)
    assert torch.equal(ours.weight, plain.weight)
    assert torch.equal(ours.bias, plain.bias)


needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no products in bf16"
)


@needs_bf16
@pytest.mark.parametrize("rows", [1, 5, PACKED_ROWS])
def test_packed_weights_give_the_same_bits(rows):
    torch.manual_seed(0)
    layer = nn.Linear(48, 96).bfloat16()
    x = torch.randn(rows, 48, generator=rng()).bfloat16()
    with torch.no_grad():
        assert torch.equal(MkldnnLinear(layer)(x), layer(x))
        assert torch.equal(MkldnnLinear(layer)(x.float()), layer(x))


@needs_bf16
@pytest.mark.parametrize("gelu", ["tanh", "none"])
def test_what_follows_a_packed_layer_is_rounded_once(gelu):
    torch.manual_seed(0)
    layer = nn.Linear(48, 96).bfloat16()
    x, to = torch.randn(2, 5, 96, generator=rng()).bfloat16()
    x = x[:, :48]
    with torch.no_grad():
        exact = F.linear(x.float(), layer.weight.float(), layer.bias.float())
        active = MkldnnLinear(layer).gelu(x, gelu)
        assert torch.allclose(
            active.float(), F.gelu(exact, approximate=gelu), rtol=2**-8, atol=1e-3
        )
        added = MkldnnLinear(layer).add(x, to)
        assert added.dtype == torch.bfloat16
        assert torch.allclose(added.float(), exact + to.float(), rtol=2**-8, atol=1e-6)
        assert torch.equal(MkldnnLinear(layer).add(x, to.float()), to.float() + layer(x))


@needs_bf16
def test_weights_are_packed_where_products_are_in_bf16():
    weight = torch.ones(2, 2)
    assert not MkldnnLinear.is_supported(weight)
    assert MkldnnLinear.is_supported(weight.bfloat16())
    assert not MkldnnLinear.is_supported(weight.bfloat16().to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert MkldnnLinear.is_supported(weight)
