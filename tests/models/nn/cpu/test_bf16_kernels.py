"""The compiled products and attention of a few rows in bf16."""

import importlib.util
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.autoregressive.prior import PriorConfig
from models.nn.cpu import bf16_kernels
from models.nn.cpu.bf16_kernels import (
    HEAD_WIDTHS,
    MAX_ROWS,
    OUTPUTS,
    SINGLE_THREAD_NUMEL,
    Avx512Attention,
    Avx512Linear,
)
from models.nn.cpu.decoder import select_kernel
from models.nn.cpu.linear import MkldnnLinear

needs_kernel = pytest.mark.skipif(
    not bf16_kernels.KERNEL, reason="this CPU has no AVX-512, or nothing compiled the kernel"
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def a_layer(inputs, outputs, seed=0):
    layer = nn.Linear(inputs, outputs).bfloat16()
    with torch.no_grad():
        for each in layer.parameters():
            each.copy_(torch.randn(each.shape, generator=rng(seed)))
    return layer


def exact(layer, x):
    weight, bias = layer.weight.double(), layer.bias.double()
    return x.double() @ weight.T + bias


def test_installing_compiles_the_kernel():
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not shutil.which(sysconfig.get_config_var("CC").split()[0]) or not headers.exists():
        pytest.skip("there is no C compiler, or Python's headers are missing")
    assert importlib.util.find_spec("models.nn.cpu._bf16_kernels") is not None


@needs_kernel
@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, MAX_ROWS),
    inputs=st.integers(1, 70),
    blocks=st.integers(1, 5),
    adding=st.booleans(),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_products_are_summed_in_fp32_and_rounded_once(rows, inputs, blocks, adding, seed):
    layer = a_layer(inputs, OUTPUTS * blocks, seed)
    x = torch.randn(rows, inputs, generator=rng(seed)).bfloat16()
    to = torch.randn(rows, OUTPUTS * blocks, generator=rng(seed + 1)).bfloat16()
    got = Avx512Linear(layer).add(x, to) if adding else Avx512Linear(layer)(x)
    wanted = exact(layer, x) + (to.double() if adding else 0)
    # half a unit of bf16's last position, and the sums' own rounding
    size = x.double().abs() @ layer.weight.double().abs().T + 4
    assert ((got.double() - wanted).abs() <= wanted.abs() * 2**-8 + size * inputs * 2**-24).all()


@needs_kernel
@torch.no_grad()
def test_rounding_is_torchs():
    """The layer is the identity, so what goes in comes out as torch rounds the same sums."""
    layer = a_layer(OUTPUTS, OUTPUTS)
    layer.weight.copy_(torch.eye(OUTPUTS))
    layer.bias.zero_()
    values = torch.tensor([0.0, -0.0, 1.0, 3e38, -3e38, 1e-40, torch.inf, -torch.inf])
    x = values.repeat(4)[None].bfloat16()
    to = torch.linspace(-2, 2, OUTPUTS)[None].bfloat16()
    # infinity times the zeros of its row is NaN, so one at a time
    for at in range(OUTPUTS):
        alone = torch.zeros_like(x)
        alone[0, at] = x[0, at]
        if x[0, at].isinf():
            assert Avx512Linear(layer)(alone).isnan().sum() == OUTPUTS - 1
            assert Avx512Linear(layer)(alone)[0, at] == x[0, at]
            continue
        assert torch.equal(Avx512Linear(layer)(alone), alone + 0)
        assert torch.equal(Avx512Linear(layer).add(alone, to), alone + to)


@needs_kernel
@torch.no_grad()
def test_other_precisions_and_orders_give_the_same():
    layer, x = a_layer(48, 64), torch.randn(3, 48, generator=rng(1)).bfloat16()
    ours = Avx512Linear(layer)
    assert torch.equal(ours(x.float()), ours(x))
    assert torch.equal(ours(x.T.contiguous().T), ours(x))
    to = torch.randn(3, 64, generator=rng(2))
    assert torch.equal(ours.add(x, to), to + ours(x))
    assert torch.equal(ours.add(x, to.bfloat16().T.contiguous().T), ours.add(x, to.bfloat16()))


@needs_kernel
@torch.no_grad()
@pytest.mark.parametrize("gelu", ["tanh", "none"])
def test_gelu_is_exact_before_it_is_rounded(gelu):
    """The layer is the identity, of every number of bf16 from 2^-20 to 20 and its negative."""
    layer = a_layer(1, OUTPUTS)
    layer.weight.fill_(1)
    layer.bias.zero_()
    bits = torch.arange(0x3580, 0x41A0, dtype=torch.int16)
    values = torch.cat([bits.view(torch.bfloat16), -bits.view(torch.bfloat16)])
    for some in values.split(MAX_ROWS):
        got = Avx512Linear(layer).gelu(some[:, None], gelu)[:, 0].double()
        wanted = nn.functional.gelu(some.double(), approximate=gelu)
        assert ((got - wanted).abs() <= wanted.abs() * 2**-8 + 1e-6).all()
    extremes = torch.tensor([1e13, -1e13, torch.nan]).bfloat16()[:, None]
    got = Avx512Linear(layer).gelu(extremes, gelu)[:, 0]
    assert torch.allclose(got[:2], torch.tensor([1e13, 0.0]).bfloat16())
    assert got[2].isnan()


@needs_kernel
@settings(deadline=None, max_examples=50)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    width=st.sampled_from(HEAD_WIDTHS),
    count=st.integers(1, 40),
    free=st.integers(0, 5),
    data=st.data(),
)
@torch.no_grad()
def test_attention_is_softmax_over_the_first_slots(batch, heads, width, count, free, data):
    slot = data.draw(st.integers(0, count - 1))
    store = torch.randn(2, batch, heads, count + free, width, generator=rng()).bfloat16()
    store[:, :, :, count:] = torch.nan
    qkv = 4 * torch.randn(batch, 3, heads, 1, width, generator=rng(1)).bfloat16()
    wanted = store.clone()
    wanted[:, :, :, slot] = qkv[:, 1:, :, 0].transpose(0, 1)
    got = Avx512Attention(store)(qkv, slot, count)
    assert torch.equal(store[:, :, :, :count], wanted[:, :, :, :count])
    assert store[:, :, :, count:].isnan().all()
    keys, values = wanted[:, :, :, :count].double()
    shares = (qkv[:, 0].double() @ keys.transpose(-1, -2) * width**-0.5).softmax(-1)
    mixed = shares @ values
    size = shares @ values.abs()
    assert ((got.double() - mixed).abs() <= mixed.abs() * 2**-8 + size * 1e-5).all()


@needs_kernel
@torch.no_grad()
def test_attention_takes_any_precision_and_order():
    store = torch.randn(2, 2, 3, 9, 32, generator=rng()).bfloat16()
    attention = Avx512Attention(store)
    qkv = torch.randn(2, 3, 3, 1, 32, generator=rng(1)).bfloat16()
    got = attention(qkv, 8, 9)
    assert torch.equal(attention(qkv.float(), 8, 9), got)
    assert torch.equal(attention(qkv.transpose(0, 2).contiguous().transpose(0, 2), 8, 9), got)
    for slot, count in ((9, 9), (-1, 9), (0, 0), (0, 10)):
        with pytest.raises(AssertionError):
            attention(qkv, slot, count)
    with pytest.raises(AssertionError):
        attention(qkv[:1], 8, 9)


@needs_kernel
def test_attention_serves_what_it_was_compiled_for(monkeypatch):
    monkeypatch.setattr(bf16_kernels, "MATRIX_UNITS", True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    store = torch.empty(2, 1, 1, 9, 64, dtype=torch.bfloat16)
    assert Avx512Attention.is_supported(store)
    assert not Avx512Attention.is_supported(store.float())
    assert not Avx512Attention.is_supported(store.to("meta"))
    assert not Avx512Attention.is_supported(store[..., :48])
    large = store.expand(2, SINGLE_THREAD_NUMEL, 1, 9, 64)
    assert not Avx512Attention.is_supported(large)
    monkeypatch.setattr(bf16_kernels, "MATRIX_UNITS", False)
    assert Avx512Attention.is_supported(large)
    monkeypatch.setattr(bf16_kernels, "KERNEL", False)
    assert not Avx512Attention.is_supported(store)


@needs_kernel
def test_gradients_do_not_get_lost():
    with pytest.raises(AssertionError):
        Avx512Linear(a_layer(48, 64))(torch.zeros(1, 48).bfloat16().requires_grad_())
    store = torch.zeros(2, 1, 1, 4, 32).bfloat16()
    with pytest.raises(AssertionError):
        Avx512Attention(store)(torch.zeros(1, 3, 1, 1, 32).bfloat16().requires_grad_(), 0, 1)


@needs_kernel
def test_it_serves_few_rows_whole_blocks_and_what_one_thread_reads_well(monkeypatch):
    weight = torch.empty(64, 48)
    assert Avx512Linear.is_supported(weight, MAX_ROWS)
    assert not Avx512Linear.is_supported(weight, MAX_ROWS + 1)
    assert not Avx512Linear.is_supported(torch.empty(65, 48), 1)
    assert not Avx512Linear.is_supported(weight.to("meta"), 1)
    large = torch.empty(OUTPUTS, SINGLE_THREAD_NUMEL // OUTPUTS + 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not Avx512Linear.is_supported(large, 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert Avx512Linear.is_supported(large, 1)
    monkeypatch.setattr(bf16_kernels, "KERNEL", False)
    assert not Avx512Linear.is_supported(weight, 1)


@torch.no_grad()
def test_without_the_kernel_the_librarys_products_draw(monkeypatch):
    config = PriorConfig(
        text_vocab=40, text_length=4, image_vocab=64, grid=(2, 2), width=64, layers=1
    )
    prior = config.build().bfloat16().eval()
    with_kernel = select_kernel(prior, prior.image_head.weight, 2)(prior.image_head)
    assert isinstance(with_kernel, Avx512Linear) == bf16_kernels.KERNEL
    monkeypatch.setattr(bf16_kernels, "KERNEL", False)
    without = select_kernel(prior, prior.image_head.weight, 2)(prior.image_head)
    assert isinstance(without, MkldnnLinear) == MkldnnLinear.is_supported(prior.image_head.weight)
    x = torch.randn(2, 64, generator=rng()).bfloat16()
    assert torch.allclose(with_kernel(x).float(), without(x).float(), atol=0.02)
