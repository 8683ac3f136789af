"""CLIP and its loss."""

import math

import pytest
import torch
from pydantic import ValidationError

from models.clip import ClipConfig, contrastive_loss, pool_last_token

TINY = ClipConfig(
    image_size=16,
    patch=8,
    vision_width=32,
    vision_layers=1,
    text_vocab=20,
    text_length=6,
    text_width=32,
    text_layers=1,
    head_width=16,
    embed=24,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return TINY.build().eval()


IMAGES = torch.rand(3, 3, 16, 16, generator=rng()) * 2 - 1
TOKENS = torch.tensor([[5, 6, 7, 3, 0, 0], [8, 9, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0]])


@torch.no_grad()
def test_features_are_unit_vectors_and_the_same_from_every_entrance(clip):
    image, text, scale = clip(IMAGES, TOKENS)
    assert image.shape == text.shape == (3, 24)
    assert torch.allclose(image.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(text.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(image, clip.encode_image(IMAGES), atol=1e-6)
    assert torch.allclose(text, clip.encode_text(TOKENS), atol=1e-6)
    assert float(scale) == float(clip.scale) == pytest.approx(1 / 0.07, rel=1e-5)


def test_a_caption_is_read_at_its_last_token_whatever_its_padding(clip):
    longer = torch.cat([TOKENS[:2, :4], torch.zeros(2, 2, dtype=torch.int64)], dim=1)
    assert torch.allclose(clip.encode_text(longer), clip.encode_text(TOKENS[:2]))
    features = torch.arange(18.0).view(3, 6, 1)
    assert pool_last_token(features, TOKENS).flatten().tolist() == [3.0, 8.0, 12.0]


def test_images_of_any_size_are_taken(clip):
    assert clip.encode_image(torch.zeros(2, 3, 40, 40)).shape == (2, 24)
    flat = clip.encode_image(torch.full((1, 3, 40, 40), 0.5))
    assert torch.allclose(flat, clip.encode_image(torch.full((1, 3, 16, 16), 0.5)), atol=1e-5)


def test_the_scale_is_held_at_a_hundred(clip):
    before = clip.clip.logit_scale.detach().clone()
    with torch.no_grad():
        clip.clip.logit_scale.fill_(9.0)
        assert float(clip(IMAGES, TOKENS).scale) == float(clip.scale) == 100.0
        clip.clip.logit_scale.copy_(before)


def test_the_loss_is_symmetric_and_ln_n_for_equal_features():
    same = torch.nn.functional.normalize(torch.ones(5, 8), dim=1)
    scale = torch.tensor(10.0)
    assert float(contrastive_loss(same, same, scale)) == pytest.approx(math.log(5), rel=1e-6)
    one = torch.nn.functional.normalize(torch.randn(5, 8, generator=rng()), dim=1)
    two = torch.nn.functional.normalize(torch.randn(5, 8, generator=rng(1)), dim=1)
    forth, back = contrastive_loss(one, two, scale), contrastive_loss(two, one, scale)
    assert float(forth) == pytest.approx(float(back), rel=1e-6)
    assert float(contrastive_loss(one, one, torch.tensor(100.0))) < 0.01


def test_clip_trains_and_runs_in_bf16():
    torch.manual_seed(0)
    model = TINY.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    tokens = torch.tensor([[4, 0, 0, 0, 0, 0], [5, 0, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])
    for _ in range(30):
        loss = contrastive_loss(*model(IMAGES, tokens))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    exact = model(IMAGES, tokens).image
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(IMAGES, tokens).image
    whole = model.bfloat16()(IMAGES, tokens).image
    assert cast.dtype == whole.dtype == torch.float32
    assert torch.allclose(cast, exact, atol=0.05)
    assert torch.allclose(whole, exact, atol=0.05)


def test_widths_that_are_no_multiple_of_the_head_are_refused():
    with pytest.raises(ValidationError, match="head_width"):
        ClipConfig(image_size=16, patch=8, vision_width=100, text_vocab=9, text_length=4)
    with pytest.raises(ValidationError, match="multiple of patch"):
        ClipConfig(image_size=18, patch=8, text_vocab=9, text_length=4)
