"""Every piece can be switched off, and then plain torch computes the same."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.nn.attention import KVBuffer
from models.nn.cpu import PIECES, bf16_kernels, dispatch, is_enabled, plain_torch, winograd
from models.nn.cpu.dispatch import Conv3x3
from models.nn.cpu.linear import MkldnnLinear
from models.nn.linear import SplitLinear


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def test_pieces_are_switched_off_by_name_or_all_and_come_back():
    with plain_torch("winograd"):
        with plain_torch("decoder"):
            assert [each for each in PIECES if not is_enabled(each)] == ["winograd", "decoder"]
        assert not is_enabled("winograd")
        assert is_enabled("decoder")
    with plain_torch():
        assert not any(map(is_enabled, PIECES))
    assert all(map(is_enabled, PIECES))


def test_switches_come_back_after_an_error():
    with pytest.raises(ValueError, match="inside"), plain_torch():
        raise ValueError("inside")
    assert all(map(is_enabled, PIECES))


def test_plain_convolutions_are_torchs(monkeypatch):
    monkeypatch.setattr(winograd, "IS_INTEL", True)
    wide, narrow = Conv3x3(128, 128), Conv3x3(6, 8)
    x, y = channels_last(noise(4, 128, 16, 16)), channels_last(noise(2, 6, 4, 4))
    assert not torch.equal(wide(x), nn.Conv2d.forward(wide, x)), "Winograd rounds differently"
    with plain_torch("winograd"):
        for layer, given in ((wide, x), (narrow, y)):
            assert torch.equal(layer(given), nn.Conv2d.forward(layer, given))
        upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
        assert torch.equal(wide.upsample_conv(x), nn.Conv2d.forward(wide, upsampled))


def test_a_plain_group_norm_is_torchs():
    norm, x = nn.GroupNorm(4, 16), channels_last(noise(2, 16, 12, 12).bfloat16())
    norm = norm.bfloat16()
    assert "_GroupNormSiLU" in type(dispatch.norm_act(norm, x, silu=True).grad_fn).__name__
    with plain_torch("group_norm"):
        assert "_GroupNormSiLU" not in type(dispatch.norm_act(norm, x, silu=True).grad_fn).__name__
        assert torch.equal(dispatch.norm_act(norm, x, silu=False), norm(x))


@pytest.mark.parametrize("bias", [True, False])
def test_the_parts_of_a_split_linear_are_those_of_one_product(bias):
    layer, x = SplitLinear(8, 12, 3, bias=bias), noise(2, 5, 8)
    parts = layer(x)
    assert len(parts) == 3
    assert torch.equal(torch.cat(parts, -1), F.linear(x, layer.weight, layer.bias))


def test_plain_attention_is_torchs():
    query, key, value = noise(3, 2, 2, 9, 16)
    with plain_torch("short_attention"):
        got = dispatch.attention(query, key, value, causal=True)
    assert torch.equal(got, F.scaled_dot_product_attention(query, key, value, is_causal=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_plain_cached_attention_agrees_with_the_kernels(dtype):
    key, value = noise(2, 2, 3, 5, 32).to(dtype)
    qkv = noise(2, 3, 3, 1, 32, seed=1).to(dtype)
    found = []
    for pieces in (["avx512"], ["avx512", "decode_attention"], [*PIECES]):
        with plain_torch(*pieces):
            buffer = KVBuffer(2, 3, 9, 32)
            buffer.fill(slice(0, 5), key, value)
            found.append(buffer.attend(qkv, 5, 6))
    buffer = KVBuffer(2, 3, 9, 32)
    buffer.fill(slice(0, 5), key, value)
    wanted = buffer.attend(qkv, 5, 6)
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    for got in found:
        assert got.dtype == dtype
        assert torch.allclose(got.float(), wanted.float(), atol=tolerance)


def test_a_plain_cache_keeps_the_precision_of_the_network(monkeypatch):
    monkeypatch.setattr(bf16_kernels, "MATRIX_UNITS", False)
    states = torch.zeros(1, 48, dtype=torch.bfloat16)
    assert dispatch.kv_cache_dtype(states) == torch.float32
    with plain_torch("decode_attention"):
        assert dispatch.kv_cache_dtype(states) == torch.bfloat16


def test_kernels_with_packed_weights_can_be_switched_off():
    weight = torch.zeros(32, 32, dtype=torch.bfloat16)
    with plain_torch("avx512", "mkldnn_linear"):
        assert not MkldnnLinear.is_supported(weight)
        assert not bf16_kernels.Avx512Linear.is_supported(weight, 1)
        assert not bf16_kernels.has_attention(64)
