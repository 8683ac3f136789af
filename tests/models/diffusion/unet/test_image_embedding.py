"""A UNet on CLIP embeddings of images and captions (unCLIP's decoder)."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.guidance import with_guidance, without_embedding, without_text
from models.diffusion.process import denoiser
from models.diffusion.unet.image_embedding import EmbeddingNoiseConfig
from models.diffusion.unet.network import UNetConfig

TINY = {
    "image_size": 8,
    "channels": 8,
    "multipliers": (1, 2),
    "depth": 1,
    "attention": (4,),
    "head_width": 8,
    "groups": 4,
}
DECODER = {
    **TINY,
    "features": {"width": 6, "projection": 10},
    "text_embedding": 5,
    "image_embedding": {"dim": 5, "tokens": 2},
}
X, TIMES = (
    torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    torch.full((2,), 0.5),
)


def woken(config: dict) -> nn.Module:
    """A network whose last layers are not 0."""
    network = UNetConfig(**config).build()
    rng = torch.Generator().manual_seed(1)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.2, generator=rng)
    return network.eval()


def given() -> Condition:
    rng = torch.Generator().manual_seed(2)
    return Condition(
        features=torch.randn(2, 4, 6, generator=rng),
        features_mask=torch.tensor([[True, True, False, False], [True, True, True, True]]),
        text_embedding=torch.randn(2, 5, generator=rng),
        image_embedding=torch.randn(2, 5, generator=rng),
    )


def test_the_token_is_the_fast_axis_of_the_projection():
    part = woken(DECODER).image_embedding
    condition = given()
    flat = part.tokens(condition.image_embedding)
    tokens = part.context(condition)
    assert tokens.shape == (2, 2, 10)
    assert torch.equal(tokens[:, 1, 3], flat[:, 3 * 2 + 1])


@pytest.mark.parametrize("change", [{}, {"transformer": {}, "resampling": "convolution"}])
def test_it_reads_every_embedding_and_no_padding(change):
    network, condition = woken({**DECODER, **change}), given()
    with torch.no_grad():
        plain = network(X, TIMES, condition)
        for name in ("features", "text_embedding", "image_embedding"):
            other = replace(condition, **{name: getattr(condition, name) + 1})
            assert not torch.allclose(network(X, TIMES, other), plain)
        padding = condition.features.clone()
        padding[0, 2:] = 9.0
        padded = network(X, TIMES, replace(condition, features=padding))
        assert torch.allclose(padded, plain, atol=1e-6)
        padding[1, 2:] = 9.0
        assert not torch.allclose(network(X, TIMES, replace(condition, features=padding)), padded)


def test_rows_without_an_embedding_take_the_learned_vector():
    network, condition = woken(DECODER), given()
    null = network.image_embedding.null
    dropped = replace(condition, null_embedding=torch.tensor([True, False]))
    row = torch.stack([null.detach(), condition.image_embedding[1]])
    stated = replace(condition, image_embedding=row)
    assert torch.equal(network(X, TIMES, dropped), network(X, TIMES, stated))
    network(X, TIMES, condition).sum().backward()
    assert null.grad is not None, "every step reads it, so that every process has its gradient"
    assert not null.grad.any()


def test_embeddings_alone_make_tokens_of_their_own_width():
    config = UNetConfig(**TINY, image_embedding={"dim": 5})
    assert config.context == 5
    assert config.conditioning == {"clip_image"}
    network = woken({**TINY, "image_embedding": {"dim": 5}})
    assert network(X, TIMES, Condition(image_embedding=torch.ones(2, 5))).shape == X.shape
    without = woken({**TINY, "image_embedding": {"dim": 5, "tokens": 0}})
    assert without.config.context is None
    assert without(X, TIMES, Condition(image_embedding=torch.ones(2, 5))).shape == X.shape


def test_the_conditioning_is_that_of_the_task():
    assert UNetConfig(**DECODER).conditioning == {"clip_image", "clip_text"}
    plain = {**TINY, "features": {"width": 6}, "image_embedding": {"dim": 5}}
    assert UNetConfig(**plain).conditioning == {"clip_image", "features"}


def test_guidance_of_both_reads_neither_on_its_unconditional_side():
    network, condition = woken(DECODER), given()
    plain = denoiser(network)
    both = with_guidance(plain, without_embedding(without_text(plain)), 0.0)
    empty = replace(
        condition,
        features=torch.zeros(2, 4, 6),
        text_embedding=torch.zeros(2, 5),
        image_embedding=network.image_embedding.null.detach().expand(2, 5),
    )
    with torch.no_grad():
        expected = plain(X, TIMES, empty).x0
        assert torch.allclose(both(X, TIMES, condition).x0, expected, atol=1e-6)


def test_tokens_are_computed_once_per_sampling_run_for_each_side():
    network, condition, calls = woken(DECODER), given(), []
    network.image_embedding.tokens.register_forward_hook(lambda *_: calls.append(1))
    plain = denoiser(network)
    steered = with_guidance(plain, without_embedding(without_text(plain)), 3.0)
    with torch.no_grad():
        first = steered(X, TIMES, condition).x0
        assert torch.equal(steered(X, TIMES, condition).x0, first)
    assert len(calls) == 2


def test_a_middle_without_attention_is_two_residual_blocks():
    network = woken({**TINY, "attention": (), "middle_attention": False})
    assert len(network.middle.blocks) == 2
    assert network(X, TIMES, Condition()).shape == X.shape


def test_a_bicubic_low_resolution_image_is_enlarged_as_by_pillow():
    network = woken({**TINY, "low_resolution": {"size": 4, "interpolation": "bicubic"}})
    seen = []
    network.stem.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    low = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    network(X, TIMES, Condition(low_res=low))
    expected = nn.functional.interpolate(low, (8, 8), mode="bicubic", antialias=True)
    assert torch.equal(seen[0][:, 3:], expected)


def test_what_is_missing_or_of_another_length_is_named():
    network, condition = woken(DECODER), given()
    for name, message in (
        ("image_embedding", "needs CLIP embeddings of images"),
        ("text_embedding", "needs CLIP embeddings of captions"),
    ):
        with pytest.raises(UserError, match=message):
            network(X, TIMES, replace(condition, **{name: None}))
    with pytest.raises(UserError, match="embeddings of 5 values, these have 7"):
        network(X, TIMES, replace(condition, image_embedding=torch.ones(2, 7)))
    with pytest.raises(ValidationError, match="comes with features"):
        UNetConfig(**TINY, text_embedding=5, text={"vocab": 9, "length": 4, "width": 8, "heads": 2})


NOISY = {
    **TINY,
    "image_embedding": {"dim": 6, "tokens": 0, "noise": {}},
    "process": {"prediction_type": "v"},
}


def noisy(level: int, null: bool = False) -> Condition:
    given = torch.randn(2, 6, generator=torch.Generator().manual_seed(3))
    rows = torch.full((2,), null)
    return Condition(
        image_embedding=given, embedding_level=torch.full((2,), level), null_embedding=rows
    )


def test_a_noisy_embedding_is_read_with_its_level_and_is_0_with_it_where_there_is_none():
    network = woken(NOISY)
    with torch.no_grad():
        outputs = [network(X, TIMES, noisy(level)) for level in (0, 10, 999)]
        assert not torch.allclose(outputs[0], outputs[1])
        assert not torch.allclose(outputs[1], outputs[2])
        without = [network(X, TIMES, noisy(level, null=True)) for level in (0, 999)]
        assert torch.equal(*without)
        part = network.image_embedding
        empty = part.out(torch.nn.functional.silu(part.hidden.bias)).expand(2, -1)
        torch.testing.assert_close(part(noisy(7, null=True)), empty)
        unconditional = denoiser(network)
        found = without_embedding(unconditional)(X, TIMES, noisy(5)).x0
        assert torch.equal(found, unconditional(X, TIMES, noisy(5, null=True)).x0)


def test_a_level_is_needed_and_noisy_embeddings_make_no_tokens():
    network = woken(NOISY)
    with pytest.raises(UserError, match="level of the noise"):
        network(X, TIMES, replace(noisy(0), embedding_level=None))
    with pytest.raises(UserError, match="embeddings of 6 values, these have 5"):
        network(X, TIMES, replace(noisy(0), image_embedding=torch.zeros(2, 5)))
    with pytest.raises(ValidationError, match="tokens: 0"):
        UNetConfig.model_validate({**TINY, "image_embedding": {"dim": 6, "noise": {}}})


@pytest.mark.parametrize("level", [0, 250, 999])
def test_noise_and_level_are_those_of_stable_unclip(level):
    # diffusers' squaredcos_cap_v2 and get_timestep_embedding(flip_sin_to_cos=True), written out
    def kept(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    product = 1.0
    for step in range(level + 1):
        product *= 1 - min(1 - kept((step + 1) / 1000) / kept(step / 1000), 0.999)
    z, noise = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = EmbeddingNoiseConfig().add(z, torch.tensor([level]), noise)
    wanted = product**0.5 * z + (1 - product) ** 0.5 * noise
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)
    part = woken(NOISY).image_embedding
    angles = torch.tensor([[level * 10_000 ** (-index / 3) for index in range(3)]])
    read = torch.cat([z.float(), angles.cos(), angles.sin()], dim=1)
    with torch.no_grad():
        ours = part(Condition(image_embedding=z, embedding_level=torch.tensor([level])))
        theirs = part.out(torch.nn.functional.silu(part.hidden(read)))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
