"""Convolutions of one small image by products are torch's, forward and backward."""

import pytest
import torch
from torch import nn

from models.nn.cpu import one_image, plain_torch
from models.nn.cpu.dispatch import Conv3x3, kernels_in_format


@pytest.fixture(autouse=True)
def _on_amd(monkeypatch):
    monkeypatch.setattr(one_image, "IS_INTEL", False)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(*shape):
    return noise(*shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(1, 4, 6), (1, 16, 12), (2, 4, 6)])
@pytest.mark.parametrize("trained", [True, False])
def test_outputs_and_gradients_are_those_of_torch(size, bias, trained):
    layer = Conv3x3(6, 8)
    if not bias:
        layer.bias = None
    layer.requires_grad_(trained)
    count, *sides = size
    x = image(count, 6, *sides).requires_grad_()
    leaves = (x, *layer.parameters()) if trained else (x,)
    found = []
    with kernels_in_format([layer]):
        assert one_image.is_supported(x, layer.weight)
        for pieces in (("winograd",), ("one_image",)):
            with plain_torch(*pieces):
                out = layer(x)
                gradients = torch.autograd.grad(out, leaves, noise(*out.shape, seed=1))
                found.append((out, *gradients))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
        assert one.stride() == other.stride()


def test_other_inputs_are_left_to_torch():
    layer = Conv3x3(4, 4)
    assert not one_image.is_supported(image(1, 4, 8, 8), layer.weight), "kernels lie otherwise"
    with kernels_in_format([layer]):
        assert one_image.is_supported(image(1, 4, 8, 8), layer.weight)
        assert not one_image.is_supported(image(9, 4, 8, 8), layer.weight)
        assert not one_image.is_supported(image(1, 4, 23, 23), layer.weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not one_image.is_supported(image(1, 4, 8, 8), layer.weight)


def test_kernels_lie_afterwards_as_before():
    network = nn.Sequential(Conv3x3(4, 4), nn.Linear(4, 4))
    before = [weight.clone() for weight in network.parameters()]
    with kernels_in_format([network]):
        assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    for weight, kept in zip(network.parameters(), before, strict=True):
        assert weight.is_contiguous()
        assert torch.equal(weight, kept)
