"""Operations that keep less for backward compute what torch's do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.nn.cpu import attention as cpu_attention
from models.nn.cpu import plain_torch
from models.nn.cpu.dispatch import Conv3x3, attention, in_format, norm_act, silu_conv
from models.nn.linear import GegluLinear


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kept_by(compute, *given):
    """The output, its gradients, and the bytes that were kept apart from parameters."""
    storages = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = compute()
    return out, torch.autograd.grad(out, given, noise(*out.shape, seed=9).to(out.dtype)), storages


def same(lean, plain, tolerance):
    for one, other in zip((lean[0], *lean[1]), (plain[0], *plain[1]), strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one.float(), other.float(), atol=tolerance, rtol=tolerance)
    assert sum(lean[2].values()) < sum(plain[2].values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_of_silu_keeps_its_input_alone(stride, autocast):
    layer = nn.Conv2d(6, 8, 3, padding=1, stride=stride)
    x = noise(2, 6, 8, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        lean = kept_by(lambda: silu_conv(layer, x), x, *layer.parameters())
        with plain_torch("lean_convolution"):
            plain = kept_by(lambda: silu_conv(layer, x), x, *layer.parameters())
    assert torch.equal(lean[0], plain[0])
    same(lean, plain, 2e-2 if autocast else 1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_frozen_convolution_keeps_nothing(autocast):
    layer = Conv3x3(6, 8).requires_grad_(False)
    x = noise(2, 6, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        lean = kept_by(lambda: layer(x), x)
        with plain_torch("lean_convolution"):
            plain = kept_by(lambda: layer(x), x)
    assert torch.equal(lean[0], plain[0])
    same(lean, plain, 2e-2 if autocast else 1e-5)
    assert not lean[2]


@pytest.mark.parametrize("modulation", ["none", "input_bias", "scale_shift"])
def test_a_norm_with_silu_in_fp32_keeps_its_input_alone(modulation):
    norm = nn.GroupNorm(4, 16)
    start = noise(2, 16, 12, 12).contiguous(memory_format=torch.channels_last).requires_grad_()
    first, second = noise(2, 16, seed=1).requires_grad_(), noise(2, 16, seed=2).requires_grad_()
    settings = {
        "none": {},
        "input_bias": {"input_bias": first},
        "scale_shift": {"scale_shift": (first, second)},
    }[modulation]
    given = [start, *norm.parameters()]
    given += {"none": [], "input_bias": [first], "scale_shift": [first, second]}[modulation]

    def compute():
        return norm_act(norm, start + 0.5, silu=True, **settings)

    lean = kept_by(compute, *given)
    with plain_torch("group_norm"):
        plain = kept_by(compute, *given)
    same(lean, plain, 1e-4)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_gated_linear_layer_keeps_its_input_alone(autocast, frozen):
    layer = GegluLinear(12, 5).requires_grad_(not frozen)
    dtype = torch.bfloat16 if autocast else torch.float32
    x = noise(2, 7, 24).to(dtype).requires_grad_()
    given = [x] if frozen else [x, *layer.parameters()]

    def plain_form():
        value, gate = x.chunk(2, dim=-1)
        return F.linear(value * F.gelu(gate), layer.weight, layer.bias)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        lean, plain = kept_by(lambda: layer(x), *given), kept_by(plain_form, *given)
        with torch.no_grad():
            assert torch.equal(layer(x), plain[0])
    assert torch.equal(lean[0], plain[0])
    same(lean, plain, 2e-2 if autocast else 1e-5)
    if frozen:
        assert lean[1][0].shape == x.shape


def test_attention_of_many_scores_in_fp32_is_the_fused_one():
    many, few = noise(1, 2, 80, 8), noise(1, 2, 12, 8)
    for query, key in ((many, many), (few, few), (many, few)):
        wanted = F.scaled_dot_product_attention(query, key, key)
        assert torch.allclose(attention(query, key, key, causal=False), wanted, atol=1e-6)


@pytest.mark.parametrize("keys", [257, 300])
def test_attention_a_few_heads_at_a_time_rounds_scores_and_nothing_else(monkeypatch, keys):
    monkeypatch.setattr(cpu_attention, "SCORES_AT_A_TIME", 2 * 20 * keys)  # 2 of 6 heads at a time
    exact = [noise(2, 3, length, 8).requires_grad_() for length in (20, keys, keys)]
    given = [each.detach().bfloat16().requires_grad_() for each in exact]
    wanted = kept_by(lambda: F.scaled_dot_product_attention(*exact), *exact)

    def compute(**options):
        with torch.autocast("cpu", torch.bfloat16, **options):
            return attention(*given, causal=False)

    lean, outside = kept_by(compute, *given), kept_by(lambda: compute(enabled=False), *given)
    assert all(torch.equal(*pair) for pair in zip(lean[1], outside[1], strict=True))
    with plain_torch("short_attention"):
        fused = kept_by(compute, *given)
    for (got, plain), right in zip(
        zip((lean[0], *lean[1]), (fused[0], *fused[1]), strict=True),
        (wanted[0], *wanted[1]),
        strict=True,
    ):
        assert got.dtype == torch.bfloat16
        away = (got.float() - right).abs().max()
        assert away < 4 * (plain.float() - right).abs().max() + 1e-3
    assert sum(lean[2].values()) <= sum(fused[2].values())
    with torch.no_grad():
        assert torch.equal(compute(), lean[0])


def test_a_norm_with_silu_of_channels_first_keeps_its_input_alone_in_bf16():
    norm, x = nn.GroupNorm(4, 16), noise(2, 16, 12, 12).bfloat16().requires_grad_()
    given = [x, *norm.parameters()]

    def compute():
        with torch.autocast("cpu", torch.bfloat16):
            return norm_act(norm, x, silu=True)

    lean = kept_by(compute, *given)
    with plain_torch("group_norm"):
        plain = kept_by(compute, *given)
    assert torch.equal(lean[0], plain[0])
    same(lean, plain, 2e-2)


def test_features_in_fp32_have_channels_last():
    weight = nn.Conv2d(4, 8, 3).weight
    assert in_format(noise(2, 4, 8, 8), weight).is_contiguous(memory_format=torch.channels_last)
