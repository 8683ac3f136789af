"""Vector quantisation: gradients, averages and restarts in closed form, and a toy run."""

import math

import pytest
import torch
from torch.nn import functional as F

from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Statistics, perplexity
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoencoders.quantizer import (
    EmaVectorQuantizerConfig,
    VectorQuantizerConfig,
    nearest,
)
from models.autoencoders.strided import StridedPyramid


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def outputs(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed))


@pytest.mark.parametrize(("positions", "codes"), [(7, 40), (2500, 4000)])
def test_the_nearest_code_is_that_of_all_distances(positions, codes):
    flat, codebook = outputs(positions, 5), outputs(codes, 5, seed=1)
    assert torch.equal(nearest(flat, codebook), torch.cdist(flat, codebook).argmin(1))


@pytest.mark.parametrize(
    "config", [VectorQuantizerConfig(codes=9), EmaVectorQuantizerConfig(codes=9)]
)
def test_the_gradient_passes_straight_through(config):
    h = outputs(2, 4, 3, 3).requires_grad_()
    latent = config.build(4)(h, rng())
    pull = outputs(2, 4, 3, 3, seed=2)
    (gradient,) = torch.autograd.grad((latent.value * pull).sum(), h)
    assert torch.equal(gradient, pull)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_dictionary_loss_has_its_factor_on_the_right_term(legacy):
    torch.manual_seed(0)
    quantizer = VectorQuantizerConfig(codes=9, commitment=0.25, legacy_beta=legacy).build(4)
    h = outputs(2, 4, 3, 3).requires_grad_()
    latent = quantizer(h, rng())
    chosen = quantizer.lookup(latent.codes).detach()
    error = (h.detach() - chosen).square().mean()
    assert latent.loss.item() == pytest.approx(1.25 * error.item(), rel=1e-5)
    to_encoder, to_codes = torch.autograd.grad(latent.loss, [h, quantizer.codebook])
    step = 2 * (h.detach() - chosen) / h.numel()
    wanted = torch.zeros_like(quantizer.codebook).index_add_(
        0, latent.codes.flatten(), -step.movedim(1, -1).flatten(0, 2)
    )
    commits, moves = (1.0, 0.25) if legacy else (0.25, 1.0)
    assert torch.allclose(to_encoder, commits * step, atol=1e-7)
    assert torch.allclose(to_codes, moves * wanted, atol=1e-7)


def test_the_averages_follow_their_closed_form():
    torch.manual_seed(0)
    config = EmaVectorQuantizerConfig(codes=5, decay=0.9, restart=None)
    quantizer = config.build(3)
    counts, sums = torch.ones(5), quantizer.codebook.clone()
    for step in range(4):
        h = outputs(2, 3, 4, 4, seed=step)
        latent = quantizer(h, rng())
        one_hot = F.one_hot(latent.codes.flatten(), 5).float()
        counts = 0.9 * counts + 0.1 * one_hot.sum(0)
        sums = 0.9 * sums + 0.1 * one_hot.T @ h.movedim(1, -1).flatten(0, 2)
        before = quantizer.codebook.clone()
        assert torch.equal(quantizer.codebook, before)
        assert quantizer.commit(latent.statistics, rng()) == 0
        smooth = (counts + 1e-5) / (counts.sum() + 5e-5) * counts.sum()
        assert torch.allclose(quantizer.codebook, sums / smooth[:, None], atol=1e-5)
    assert list(quantizer.parameters()) == []


def test_a_forward_changes_no_codebook():
    quantizer = EmaVectorQuantizerConfig(codes=5).build(3).train()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    first = quantizer(outputs(2, 3, 4, 4), rng())
    second = quantizer(outputs(2, 3, 4, 4), rng())
    assert all(torch.equal(before[name], now) for name, now in quantizer.state_dict().items())
    assert torch.equal(first.statistics.sums, second.statistics.sums)
    assert torch.equal(first.statistics.candidates, second.statistics.candidates)


def test_dead_codes_are_put_where_the_encoder_is_and_live_ones_left_alone():
    config = EmaVectorQuantizerConfig(codes=4, decay=0.5, restart=0.5)
    quantizer = config.build(2)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0], [8.0, -8.0], [-7.0, 7.0]]))
    quantizer.counts.copy_(torch.tensor([4.0, 0.1, 0.0, 4.0]))
    quantizer.sums.copy_(quantizer.codebook * quantizer.counts[:, None])
    candidates = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    seen = Statistics(
        torch.tensor([4.0, 0.0, 0.0, 4.0]),
        torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [-28.0, 28.0]]),
        candidates,
    )
    assert quantizer.commit(seen, rng()) == 2
    assert torch.allclose(quantizer.codebook[0], torch.zeros(2), atol=1e-4)
    assert torch.allclose(quantizer.codebook[3], torch.tensor([-7.0, 7.0]), atol=1e-3)
    moved = quantizer.codebook[1:3]
    assert torch.allclose(moved[moved[:, 0].argsort()], candidates, rtol=1e-3)
    # a fair share is 2 positions; below half of it a code is dead
    assert torch.allclose(quantizer.counts[1:3], torch.tensor([2.0, 2.0]))


def test_averages_stay_in_fp32_when_the_module_is_cast_and_follow_a_move():
    model = torch.nn.Sequential(EmaVectorQuantizerConfig(codes=4).build(2))
    before = model[0].codebook.clone()
    model.bfloat16()
    assert torch.equal(model[0].codebook, before)
    model.half()
    assert model[0].sums.dtype == torch.float32
    assert model.to("meta")[0].codebook.is_meta


def test_perplexity_is_k_for_even_use_and_one_for_a_single_code():
    assert float(perplexity(torch.full((64,), 3))) == pytest.approx(64)
    assert float(perplexity(torch.tensor([0, 9, 0]))) == pytest.approx(1)
    uneven = torch.tensor([1, 3])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert float(perplexity(uneven)) == pytest.approx(math.exp(entropy))


def shapes(count, generator):
    """Discs, squares and bars of any colour on a pale ground, (count, 3, 16, 16) in [-1, 1]."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    centre = torch.rand(2, count, 1, 1, generator=generator) * 8 + 4
    size = torch.rand(count, 1, 1, generator=generator) * 3 + 2
    down, across = (rows - centre[0]).abs(), (columns - centre[1]).abs()
    disc = down.square() + across.square() < size.square()
    square = torch.maximum(down, across) < 0.9 * size
    bar = (down < 0.4 * size) & (across < 1.5 * size)
    kind = torch.randint(3, (count,), generator=generator)
    inside = torch.stack([disc, square, bar])[kind, torch.arange(count)][:, None].float()
    colour = torch.rand(count, 3, 1, 1, generator=generator) * 2 - 1
    return inside * colour + (1 - inside) * 0.9


TOY = StridedPyramid(width=32, halvings=2, blocks=1, residual_width=16)


def train_toy(model, steps):
    """Train on shapes; usage of the finest codebook over the last 20 steps, and the last error."""
    generator = rng()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    used = torch.zeros(64)
    for step in range(steps):
        image = shapes(32, generator)
        result = model(image, generator)
        error = F.mse_loss(result.output, image)
        optimizer.zero_grad()
        (error + sum(latent.loss for latent in result.latents)).backward()
        optimizer.step()
        model.commit([latent.statistics for latent in result.latents], generator)
        if step >= steps - 20:
            used += result.latents[-1].usage
    return used, float(error.detach())


def toy_run(restart, steps):
    """Perplexity of the last 20 steps and the last error."""
    torch.manual_seed(0)
    bottleneck = EmaVectorQuantizerConfig(codes=64, restart=restart)
    config = AutoencoderConfig(image_size=16, channels=16, pyramid=TOY, bottleneck=bottleneck)
    used, error = train_toy(config.build(), steps)
    return float(perplexity(used)), error


def test_restarts_keep_a_codebook_alive_that_dies_without_them():
    alive, error = toy_run(0.1, 400)
    dying, worse = toy_run(None, 150)
    assert alive >= 20
    assert dying < 5
    assert error < worse


def test_codes_of_two_levels_say_more_than_the_coarse_ones_alone():
    bottleneck = EmaVectorQuantizerConfig(codes=64)
    torch.manual_seed(0)
    finest = TOY.model_copy(update={"halvings": 1})
    both = VQVAE2Config(image_size=16, channels=16, pyramid=finest, bottleneck=bottleneck).build()
    train_toy(both, 60)
    torch.manual_seed(0)
    top = AutoencoderConfig(image_size=16, channels=16, pyramid=TOY, bottleneck=bottleneck).build()
    train_toy(top, 60)
    assert both.config.grids[0] == top.grid
    image = shapes(64, rng(9))
    with torch.no_grad():
        codes = both.codes(image)
        whole, coarse, alone = (
            float(F.mse_loss(back, image))
            for back in (both.decode(codes), both.decode(codes[:1]), top.reconstruct(image))
        )
    assert whole < 0.8 * alone
    assert whole < 0.7 * coarse
