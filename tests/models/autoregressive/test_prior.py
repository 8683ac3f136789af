"""The prior: its sizes, its causality and its loss."""

import math

import pytest
import torch
from pydantic import ValidationError

from models.autoregressive.prior import PriorConfig, PriorLogits

TINY = PriorConfig(
    text_vocab=11,
    text_length=4,
    image_vocab=13,
    grid=(2, 3),
    width=16,
    layers=2,
    heads=2,
    head_width=8,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(config=TINY, count=2):
    text = torch.randint(1, config.text_vocab, (count, config.text_length), generator=rng())
    codes = torch.randint(config.image_vocab, (count, config.image_length), generator=rng(1))
    return text, codes


@pytest.mark.parametrize(
    ("width", "heads", "matrices"),
    [(3968, 62, 12_092_178_432), (1920, 30, 2_831_155_200), (2688, 42, 5_549_064_192)],
)
def test_the_papers_sizes_have_their_exact_matrix_counts(width, heads, matrices):
    config = PriorConfig(
        text_vocab=16_384,
        text_length=256,
        image_vocab=8192,
        grid=(32, 32),
        width=width,
        layers=64,
        heads=heads,
    )
    with torch.device("meta"):
        model = config.build()
    counted = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    assert counted == matrices == 12 * width**2 * 64
    total = sum(p.numel() for p in model.parameters())
    assert matrices < total
    if width == 3968:
        assert 12.09e9 < total < 12.30e9


@pytest.mark.parametrize("length", [6, 300])
def test_no_output_depends_on_the_future(length):
    # 6 and 300 positions take the two ways of computing attention
    config = TINY.model_copy(update={"grid": (1, length)})
    torch.manual_seed(0)
    model = config.build()
    text, codes = inputs(config, count=1)
    embedded = torch.cat(
        [model.embed_text(text), model.embed_image(codes[:, :-1], 0)], dim=1
    ).detach()
    embedded.requires_grad_()
    hidden = model.run(embedded)
    positions = range(embedded.shape[1]) if length < 10 else (0, 3, 4, 150, 302)
    for position in positions:
        (gradient,) = torch.autograd.grad(hidden[0, position, 0], embedded, retain_graph=True)
        reached = gradient[0].abs().amax(dim=1)
        assert torch.equal(reached[position + 1 :], torch.zeros_like(reached[position + 1 :]))
        assert float(reached[: position + 1].min()) > 0


def test_a_place_predicts_the_next_token_and_never_sees_it():
    torch.manual_seed(0)
    model = TINY.build()
    text, codes = inputs(count=1)
    before = model(text, codes)
    changed = codes.clone()
    changed[0, 2] = (changed[0, 2] + 1) % TINY.image_vocab
    after = model(text, changed)
    assert torch.equal(before.text, after.text)
    assert torch.equal(before.image[:, :3], after.image[:, :3])
    assert not torch.allclose(before.image[:, 3:], after.image[:, 3:])
    changed = text.clone()
    changed[0, 1] = changed[0, 1] % (TINY.text_vocab - 1) + 1
    after = model(changed, codes)
    assert torch.equal(before.text[:, :2], after.text[:, :2])
    assert not torch.allclose(before.text[:, 2:], after.text[:, 2:])
    assert not torch.allclose(before.image, after.image)


@torch.no_grad()
def test_a_new_network_is_about_uniform(prior_loss):
    torch.manual_seed(0)
    config = TINY.model_copy(update={"text_vocab": 400, "image_vocab": 512})
    text, codes = inputs(config, count=8)
    _, text_loss, image_loss = prior_loss(config.build()(text, codes), text, codes)
    assert float(text_loss) == pytest.approx(math.log(400), rel=0.05)
    assert float(image_loss) == pytest.approx(math.log(512), rel=0.05)


def test_the_loss_is_one_eighth_text_and_seven_eighths_image(prior_loss):
    text, codes = inputs()
    logits = PriorLogits(
        torch.randn(2, 4, 11, generator=rng(2)), torch.randn(2, 6, 13, generator=rng(3))
    )
    total, text_loss, image_loss = prior_loss(logits, text, codes)
    assert float(total) == pytest.approx(float(text_loss + 7 * image_loss) / 8, rel=1e-6)
    picked = logits.image.log_softmax(-1).gather(-1, codes[..., None])
    assert float(image_loss) == pytest.approx(float(-picked.mean()), rel=1e-6)


def test_shares_of_a_batch_average_to_the_whole(prior_loss):
    text, codes = inputs(count=4)
    text[0, 2:] = 0
    text[1] = 0
    logits = PriorLogits(
        torch.randn(4, 4, 11, generator=rng(2)), torch.randn(4, 6, 13, generator=rng(3))
    )
    whole = prior_loss(logits, text, codes)[0]
    halves = [
        prior_loss(PriorLogits(logits.text[s], logits.image[s]), text[s], codes[s])[0]
        for s in (slice(0, 2), slice(2, 4))
    ]
    assert float(whole) == pytest.approx(float(sum(halves)) / 2, rel=1e-6)


def test_an_empty_grid_is_refused():
    with pytest.raises(ValidationError, match="grid"):
        PriorConfig(text_vocab=11, text_length=4, image_vocab=13, grid=(0, 3))


def test_an_empty_place_has_a_vector_of_its_own():
    torch.manual_seed(0)
    model = TINY.build()
    text = torch.tensor([[3, 4, 0, 0]])
    embedded = model.embed_text(text)[0, 1:]
    position = model.text_position(0, 4)
    assert torch.allclose(embedded[2:], model.text_pad(2, 4) + position[2:])
    assert torch.allclose(embedded[0], model.text_token.weight[3] + position[0])


def test_the_network_runs_in_bf16_and_under_autocast():
    text, codes = inputs()
    torch.manual_seed(0)
    model = TINY.build()
    exact = model(text, codes).image
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(text, codes).image
    whole = model.bfloat16()(text, codes).image
    for image in (cast, whole):
        assert image.dtype == torch.float32
        assert torch.allclose(image, exact, atol=0.05)
