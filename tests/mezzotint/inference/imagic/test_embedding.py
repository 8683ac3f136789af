"""What Imagic optimises of the three kinds of networks that read captions."""

import pytest
import torch

from mezzotint.inference.imagic.embedding import (
    interpolated,
    own_text_encoder,
    text_embedding,
    with_embedding,
)
from models.diffusion.condition import Condition
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig

UNET = {
    "image_size": 8,
    "channels": 8,
    "multipliers": (1,),
    "depth": 1,
    "attention": (8,),
    "head_width": 8,
    "groups": 8,
}
ENCODER = {"vocab": 9, "length": 3, "width": 8, "layers": 1, "heads": 1}
NETWORKS = {
    "transformer": TextDiffusionConfig(
        image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=9, text_length=3
    ),
    "unet": UNetConfig(**UNET, text=ENCODER),
    "ldm": UNetConfig(**UNET, text={**ENCODER, "form": "ldm"}, transformer={}),
    "features": UNetConfig(**UNET, features={"width": 6}, transformer={}),
}
X, TIMES = torch.linspace(-1, 1, 192).view(1, 3, 8, 8), torch.tensor([0.4])
CONDITION = Condition(
    text=torch.tensor([[3, 4, 0]]),
    features=torch.linspace(0, 1, 18).view(1, 3, 6),
    empty_features=torch.zeros(3, 6),
)


def woken(config):
    torch.manual_seed(0)
    model = config.build().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.1)
    return model


@pytest.fixture(params=NETWORKS, scope="module")
def given(request):
    network = woken(NETWORKS[request.param])
    if request.param == "features":
        return network, CONDITION
    return network, Condition(text=CONDITION.text)


def test_the_embedding_in_its_place_changes_nothing_and_another_does(given):
    network, condition = given
    embedding = text_embedding(network, condition)
    assert embedding.shape[:2] == (1, 3)
    with torch.no_grad():
        plain = network(X, TIMES, condition)
        assert torch.equal(network(X, TIMES, with_embedding(condition, embedding)), plain)
        other = network(X, TIMES, with_embedding(condition, embedding.flip(-1)))
    assert not torch.allclose(other, plain, atol=1e-4)


def test_the_embedding_gets_a_gradient_and_the_text_encoder_none(given):
    network, condition = given
    embedding = text_embedding(network, condition).requires_grad_()
    network(X, TIMES, with_embedding(condition, embedding)).square().sum().backward()
    assert bool(embedding.grad.any())
    if (encoder := own_text_encoder(network)) is not None:
        assert all(weight.grad is None for weight in encoder.parameters())
    network.zero_grad(set_to_none=True)


def test_without_text_it_is_gone(given):
    network, condition = given
    embedding = text_embedding(network, condition) + 1
    with torch.no_grad():
        empty = network(X, TIMES, condition.without_text)
        assert torch.equal(
            network(X, TIMES, with_embedding(condition, embedding).without_text), empty
        )


def test_the_ends_of_the_interpolation_are_exact():
    one, other = torch.randn(2, 1, 3, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(interpolated(one, other, 0.0), one)
    assert torch.equal(interpolated(one, other, 1.0), other)
    assert torch.allclose(interpolated(one, other, 0.25), 0.75 * one + 0.25 * other)
    assert torch.allclose(interpolated(one, other, 1.2), other + 0.2 * (other - one), atol=1e-6)


def test_a_network_without_captions_has_none():
    network = SuperResolutionConfig(low_size=8, image_size=16, channels=(8,), blocks=1).build()
    assert text_embedding(network, Condition()) is None
