"""Every way to compute a masked layer gives what the dense reference gives."""

import pytest
import torch

from models.autoregressive.patterns import Column, Convolution, Corner, OwnRow, Row
from models.autoregressive.prior import PriorConfig
from models.autoregressive.rolling_kv_cache import RollingKVCache
from models.autoregressive.sparse import (
    SparseAttention,
    attend_blocks,
    attend_dense,
    attend_flex,
    blocks_are_faster,
)

PREFIX = 5
PATTERNS = [
    Row(4),
    OwnRow(4),
    Column(4),
    Convolution(4, 3),
    Convolution(8, 11),
    Convolution(3, 11),
    Corner(4, 3),
]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def states(length, *, heads=2, head_width=8):
    return torch.randn(3, 2, heads, length, head_width, generator=rng()).requires_grad_()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("cut", [0, 1, 6])
def test_blocks_equal_the_dense_mask_in_outputs_and_gradients(pattern, cut):
    x = states(PREFIX + 5 * pattern.width - cut)
    wanted, got = (way(*x, PREFIX, pattern) for way in (attend_dense, attend_blocks))
    assert torch.allclose(got, wanted, atol=1e-5)
    seed = torch.randn(wanted.shape, generator=rng(1))
    (exact,) = torch.autograd.grad(wanted, x, seed)
    (gradient,) = torch.autograd.grad(got, x, seed)
    assert torch.allclose(gradient, exact, atol=1e-5)


PAPERS = [Row(32), Column(32), Convolution(32, 11), OwnRow(32), Corner(32, 5)]


@pytest.mark.parametrize("pattern", PAPERS, ids=str)
def test_blocks_equal_the_dense_mask_at_the_papers_geometry(pattern):
    x = states(257 + 1023, heads=1)
    wanted, got = (way(*x, 257, pattern) for way in (attend_dense, attend_blocks))
    assert torch.allclose(got, wanted, atol=1e-5)
    seed = torch.randn(wanted.shape, generator=rng(1))
    (exact,) = torch.autograd.grad(wanted, x, seed)
    (gradient,) = torch.autograd.grad(got, x, seed)
    assert torch.allclose(gradient, exact, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_flex_attention_reads_the_same_places(pattern):
    x = states(PREFIX + 5 * pattern.width - 1).detach()
    wanted = attend_dense(*x, PREFIX, pattern)
    assert torch.allclose(attend_flex(*x, PREFIX, pattern), wanted, atol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_caption_without_an_image_is_causal(pattern):
    x = states(PREFIX)
    wanted = torch.nn.functional.scaled_dot_product_attention(*x, is_causal=True)
    assert torch.allclose(attend_blocks(*x, PREFIX, pattern), wanted, atol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("first", [0, 1, 11])
def test_a_ring_gives_what_the_whole_sequence_gives(pattern, first):
    positions = 6 * pattern.width
    x = states(PREFIX + positions).detach()
    wanted = attend_dense(*x, PREFIX, pattern)
    cache = RollingKVCache(pattern, PREFIX, positions, 2, 2, 8)
    cache.fill(*x[1:, :, :, : PREFIX + first])
    for position in range(PREFIX + first, PREFIX + positions):
        got = cache.attend(x[:, :, :, position : position + 1].transpose(0, 1))
        assert torch.allclose(got, wanted[:, :, position : position + 1], atol=1e-5)
    assert cache.filled == PREFIX + positions
    assert cache.size == pattern.cache_size(positions)


@pytest.mark.parametrize("way", [attend_dense, attend_blocks])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gradients_reach_exactly_the_places_that_are_read(pattern, way):
    count = 5 * pattern.width - 1
    x = torch.randn(1, 1, PREFIX + count, 8, generator=rng()).requires_grad_()
    out = way(x, x, x, PREFIX, pattern)
    for position in range(PREFIX + count):
        (gradient,) = torch.autograd.grad(out[0, 0, position].sum(), x, retain_graph=True)
        reached = gradient[0, 0].abs().amax(dim=1) != 0
        image = torch.arange(count)
        read = torch.zeros(PREFIX + count, dtype=torch.bool)
        read[: min(position + 1, PREFIX)] = True
        if position >= PREFIX:
            read[PREFIX:] = pattern.allows(torch.tensor(position - PREFIX), image)
        assert torch.equal(reached, read)


def test_blocks_are_used_where_their_windows_are_small():
    assert blocks_are_faster(Row(32), 1024)
    assert blocks_are_faster(Convolution(32, 11), 1024)
    assert not blocks_are_faster(Convolution(8, 11), 64)


CONFIG = PriorConfig(
    text_vocab=11, text_length=4, image_vocab=13, grid=(8, 8), width=16, layers=6, heads=2,
    head_width=8,
)  # fmt: skip


@pytest.mark.parametrize("flavor", ["paper", "dalle_pytorch"])
def test_a_whole_prior_gives_the_same_whichever_way_its_layers_attend(flavor, monkeypatch):
    config = CONFIG.model_copy(update={"mask_flavor": flavor, "mask_kernel": 3})
    torch.manual_seed(0)
    model = config.build()
    text = torch.randint(11, (2, 4), generator=rng(1))
    codes = torch.randint(13, (2, 64), generator=rng(2))
    found = []
    for pays in (True, False):
        monkeypatch.setattr(
            "models.autoregressive.sparse.blocks_are_faster",
            lambda pattern, positions, pays=pays: pays,
        )
        logits = model(text, codes)
        loss = logits.text.square().mean() + logits.image.square().mean()
        weights = dict(model.named_parameters())
        found.append((logits, torch.autograd.grad(loss, list(weights.values()))))
    (blocks, first), (dense, second) = found
    assert torch.allclose(blocks.text, dense.text, atol=1e-5)
    assert torch.allclose(blocks.image, dense.image, atol=1e-5)
    for one, other in zip(first, second, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("flavor", ["paper", "dalle_pytorch", "dense"])
def test_no_layer_of_a_prior_reads_the_future(flavor):
    config = CONFIG.model_copy(update={"mask_flavor": flavor})
    torch.manual_seed(0)
    model = config.build()
    x = torch.randn(1, 68, 16, generator=rng(3)).requires_grad_()
    for block in model.blocks:
        out = block.attention(x)
        for position in (0, 3, 4, 5, 20, 41, 67):
            (gradient,) = torch.autograd.grad(out[0, position].sum(), x, retain_graph=True)
            assert int(gradient[0, position + 1 :].count_nonzero()) == 0
            assert int(gradient[0, : min(position + 1, 5)].count_nonzero()) > 0


def test_a_reach_builds_the_cache_of_its_pattern():
    cache = SparseAttention(Row(32), 257, 1024).new_cache(2, 3, 8)
    assert cache.size == 33
    assert cache.filled == 0
