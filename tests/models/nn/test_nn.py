"""Shared layers."""

import pytest
import torch
from torch.nn import functional as F

from models.nn.attention import FullKVCache, SelfAttention
from models.nn.cpu.attention import SHORT
from models.nn.cpu.bf16_kernels import Avx512Attention
from models.nn.cpu.dispatch import attention, kv_cache_dtype
from models.nn.embedding import AxialPositionEmbedding, TimestepEmbedding, sinusoidal_embedding
from models.nn.patchify import patchify, resize, unpatchify
from models.nn.random import gumbel_like
from models.nn.transformer import DiTBlock


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 7, SHORT + 3])
def test_both_ways_of_attending_agree(causal, length):
    query, key, value = torch.randn(3, 2, 2, length, 8, generator=rng())
    wanted = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    assert torch.allclose(attention(query, key, value, causal=causal), wanted, atol=1e-5)


def test_a_cache_filled_in_two_ways_gives_the_same():
    length = 9
    torch.manual_seed(0)
    layer = SelfAttention(16, 2, 8, causal=True)
    x = torch.randn(2, length, 16, generator=rng())
    cache = FullKVCache(2, 2, length, 8)
    with torch.no_grad():
        steps = [layer(x[:, :4], cache), *(layer(x[:, i : i + 1], cache) for i in range(4, length))]
        assert torch.allclose(torch.cat(steps, dim=1), layer(x), atol=1e-6)
    with pytest.raises(ValueError, match="one position at a time"):
        layer(x[:, :2], cache)


def test_patches_are_undone():
    image = torch.randn(2, 3, 8, 12, generator=rng())
    tokens = patchify(image, 4)
    assert tokens.shape == (2, 6, 48)
    assert torch.equal(unpatchify(tokens, 4, 8, 12), image)


def test_a_patch_holds_its_own_pixels_in_raster_order():
    image = torch.zeros(1, 3, 8, 12)
    image[:, :, 4:8, 8:12] = 1
    assert patchify(image, 4).sum(dim=2).tolist() == [[0, 0, 0, 0, 0, 48]]


def test_resizing_keeps_flat_images_and_leaves_the_right_size_alone():
    image = torch.full((1, 3, 12, 12), 0.25)
    assert torch.allclose(resize(image, 5, 5), torch.full((1, 3, 5, 5), 0.25))
    assert resize(image, 12, 12) is image


def test_time_waves_are_computed_in_fp32_for_a_network_in_bf16():
    t = torch.tensor([0.5, 0.5004])
    layer = TimestepEmbedding(8, features=64).bfloat16()
    assert sinusoidal_embedding(t, 64).dtype == torch.float32
    out = layer(t)
    assert out.dtype == torch.bfloat16
    assert not torch.equal(sinusoidal_embedding(t, 64)[0], sinusoidal_embedding(t, 64)[1])


def test_grid_places_are_row_plus_column():
    positions = AxialPositionEmbedding(2, 3, 4)
    assert torch.equal(positions(4, 5)[0], positions.row.weight[1] + positions.column.weight[1])
    assert positions(0, 6).shape == (6, 4)


def test_a_new_adaptive_block_is_the_identity():
    torch.manual_seed(0)
    block = DiTBlock(16, 2, 8, dropout=0.0)
    x = torch.randn(2, 5, 16, generator=rng())
    vector, context = torch.randn(2, 16, generator=rng(1)), torch.randn(2, 3, 16, generator=rng(2))
    assert torch.equal(block(x, vector, context), x)


def test_gumbel_noise_has_its_mean_and_variance():
    noise = gumbel_like(torch.empty(200_000), rng())
    assert bool(noise.isfinite().all())
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(1.6449, rel=0.02)


@pytest.mark.parametrize(("units", "kernel"), [(True, False), (False, True), (False, False)])
def test_a_bf16_network_on_a_cpu_caches_in_fp32_where_bf16_is_slow(units, kernel, monkeypatch):
    monkeypatch.setattr("models.nn.cpu.bf16_kernels.MATRIX_UNITS", units)
    monkeypatch.setattr("models.nn.cpu.bf16_kernels.has_attention", lambda width: kernel)
    # heads of 8 have no compiled kernel
    monkeypatch.setattr(Avx512Attention, "is_supported", lambda store: False)
    torch.manual_seed(0)
    layer = SelfAttention(16, 2, 8, causal=True).bfloat16()
    x = torch.randn(2, 9, 16, generator=rng()).bfloat16()
    cache = FullKVCache(2, 2, 9, 8)
    with torch.no_grad():
        steps = [layer(x[:, :4], cache), *(layer(x[:, i : i + 1], cache) for i in range(4, 9))]
        whole = layer(x)
    assert kv_cache_dtype(x) == (torch.bfloat16 if units or kernel else torch.float32)
    got = torch.cat(steps, dim=1)
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.float(), whole.float(), atol=0.02)
