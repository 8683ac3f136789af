"""Convolutions with fewer products, and group norms in one step, compute what the plain ones do."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.nn.cpu import winograd
from models.nn.cpu.dispatch import Conv3x3, norm_act
from models.nn.cpu.group_norm import fused


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def last(x):
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def doubled(x):
    return F.interpolate(x, scale_factor=2, mode="nearest")


def distances(one, other, leaves):
    """Of the results and of the gradients of each leaf, relative to the second's."""
    seed = noise(*one.shape, seed=7).to(one.dtype)
    pairs = [(one.detach(), other.detach())]
    pairs += zip(
        torch.autograd.grad(one, leaves, seed), torch.autograd.grad(other, leaves, seed),
        strict=True,
    )  # fmt: skip
    assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in pairs)
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


@pytest.mark.parametrize("at_once", [1, 2**20])
@pytest.mark.parametrize(
    ("transform", "before"),
    [(winograd.LARGE, lambda x: x), (winograd.SMALL, lambda x: x), (winograd.UPSAMPLED, doubled)],
)
def test_fewer_products_give_the_same_and_the_same_gradients(
    transform, before, at_once, monkeypatch
):
    monkeypatch.setattr(winograd, "CHUNK", at_once)
    x, weight, bias = last(noise(3, 5, 8, 12)), noise(7, 5, 3, 3), noise(7)
    leaves = [x, weight.requires_grad_(), bias.requires_grad_()]
    got = winograd.convolve(*leaves, transform)
    wanted = F.conv2d(before(x), weight, bias, padding=1)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert max(distances(got, wanted, leaves)) < 3e-6
    with torch.no_grad():
        assert torch.equal(winograd.convolve(*leaves, transform), got), "sampling as training"


@pytest.mark.parametrize(("count", "transform"), [(4, winograd.LARGE), (2, winograd.SMALL)])
def test_a_wide_layer_takes_them_and_stays_within_rounding(count, transform, monkeypatch):
    monkeypatch.setattr(winograd, "IS_INTEL", True)
    torch.manual_seed(0)
    layer = Conv3x3(128, 128)
    x = last(noise(count, 128, 16, 16))
    leaves = [x, *layer.parameters()]
    assert winograd.tiles_for(x, layer.weight) is transform
    assert max(distances(layer(x), nn.Conv2d.forward(layer, x), leaves)) < 3e-6
    wanted = nn.Conv2d.forward(layer, doubled(x))
    assert max(distances(layer.upsample_conv(x), wanted, leaves)) < 3e-6


def test_where_they_do_not_pay_layers_are_plain_bit_for_bit():
    torch.manual_seed(0)
    layer = Conv3x3(128, 128)
    narrow = Conv3x3(8, 8)
    x = last(noise(2, 128, 16, 16))
    for own, given in (
        (layer, x.detach().contiguous()),
        (layer, last(noise(1, 128, 8, 8))),
        (layer, last(noise(2, 128, 17, 17))),
        (narrow, last(noise(2, 8, 32, 32))),
    ):
        assert torch.equal(own(given), nn.Conv2d.forward(own, given))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), nn.Conv2d.forward(layer, x))
    assert torch.equal(narrow.upsample_conv(x[:, :8]), narrow(doubled(x[:, :8])))


def new_norm():
    norm = nn.GroupNorm(4, 16)
    with torch.no_grad():
        norm.weight.copy_(noise(16, seed=1))
        norm.bias.copy_(noise(16, seed=2))
    return norm


def settings(*, adds, scales, batch=3):
    numbers = [noise(batch, 16, seed=seed).requires_grad_() for seed in (3, 4, 5)]
    chosen = {
        "input_bias": numbers[0] if adds else None,
        "scale_shift": numbers[1:] if scales else None,
    }
    return chosen, numbers[:1] * adds + numbers[1:] * scales


@pytest.mark.parametrize("active", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_norm_in_one_step_is_the_norm(active, adds, scales, batch):
    norm, x = new_norm(), last(2 * noise(batch, 16, 6, 5) + 1)
    chosen, conditions = settings(adds=adds, scales=scales, batch=batch)
    leaves = [x, *norm.parameters(), *conditions]
    got, wanted = (each(norm, x.clone(), silu=active, **chosen) for each in (fused, norm_act))
    assert max(distances(got, wanted, leaves)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("same", [False, True], ids=["fp32 weights", "all in 16 bits"])
@pytest.mark.parametrize("side", [8, 12])
def test_in_16_bits_it_is_as_exact_as_they_allow(dtype, same, side):
    norm, x = new_norm(), last((2 * noise(3, 16, side, side) + 1).to(dtype))
    exact = nn.GroupNorm(4, 16).double()
    exact.load_state_dict(norm.state_dict())
    norm = norm.to(dtype) if same else norm
    chosen, conditions = settings(adds=True, scales=True)
    true_x = last(x.detach().double())
    got = norm_act(norm, x.clone(), silu=True, **chosen)
    wanted = norm_act(exact, true_x.clone(), silu=True, **chosen)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    seed = noise(*x.shape, seed=7).to(dtype)
    found = got.detach(), *torch.autograd.grad(got, [x, *conditions], seed)
    truth = wanted.detach(), *torch.autograd.grad(wanted, [true_x, *conditions], seed.double())
    for one, other in zip(found, truth, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 0.01


def test_a_norm_in_one_step_keeps_its_input_alone():
    kept = []
    norm, x = new_norm(), last(noise(2, 16, 32, 32).bfloat16())

    def pack(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm_act(norm, x, silu=True)
    assert sum(kept) < 1.1 * x.nbytes
