"""The autoregressive prior of embeddings: causality, its loss, and sampling with a cache."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from mezzotint.common.errors import UserError
from models.autoregressive.decoding import Sampling
from models.autoregressive.embedding_codec import measure
from models.autoregressive.embedding_prior import EmbeddingPriorConfig, generate_embeddings
from models.nn.clip_captions import ClipCaption
from models.nn.random import BatchGenerator

TINY = EmbeddingPriorConfig(
    dim=6, components=4, buckets=8, levels=4, features={"width": 5}, length=5, width=16, layers=2,
    heads=2,
)  # fmt: skip
LENGTHS = (3, 5, 1)
LEVEL = torch.tensor([3, 0, 2])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def caption(lengths=LENGTHS, seed=1):
    mask = None
    if lengths is not None:
        mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    return ClipCaption(noise(3, 5, 5, seed=seed), noise(3, 6, seed=seed + 1), mask)


CODES = torch.tensor([[0, 7, 3, 2], [1, 1, 6, 5], [4, 0, 0, 7]])


def trained():
    torch.manual_seed(0)
    model = TINY.build().eval()
    with torch.no_grad():
        for place, weight in enumerate(model.parameters()):
            weight.add_(noise(*weight.shape, seed=place) * 0.3)
    model.codec.use(measure(noise(40, 6), torch.linspace(0, 1, 9), components=4, levels=4))
    return model


def test_the_paper_shaped_prior_has_its_parameters():
    config = EmbeddingPriorConfig(dim=1024, features={"width": 1024}, length=256)
    with torch.device("meta"):
        model = config.build()
    blocks = 24 * (12 * 2048**2 + 13 * 2048)
    ends = 2 * (1025 * 2048) + 64 * 2048 + 1024 * 2048 + 576 * 2048 + 2 * 2048 + 1024 * 2049
    assert sum(weight.numel() for weight in model.parameters()) == blocks + ends == 1_218_307_072


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_code_is_predicted_from_those_before_it_and_the_caption(lengths):
    model, given = trained(), caption(lengths)
    given.features.requires_grad_()
    plain = model.logits(given, LEVEL, CODES)
    for place in range(4):
        codes = CODES.clone()
        codes[:, place] = (codes[:, place] + 1) % 8
        same = (model.logits(given, LEVEL, codes) == plain).all(dim=2).all(dim=0)
        assert same.tolist() == [at <= place for at in range(4)]
    plain.square().sum().backward()
    read = given.features.grad.abs().sum(dim=2) > 0
    assert torch.equal(read, torch.ones(3, 5).bool() if lengths is None else given.mask)
    assert not torch.equal(model.logits(given, (LEVEL + 1) % 4, CODES), plain)


def test_the_loss_is_the_cross_entropy_of_its_logits_and_trains_everything():
    model = trained()
    value = model(caption(), LEVEL, CODES)
    logits = model.logits(caption(), LEVEL, CODES)
    torch.testing.assert_close(value, F.cross_entropy(logits.flatten(0, 1), CODES.flatten()))
    value.backward()
    assert all(weight.grad is not None for weight in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_steps_with_a_cache_give_the_teacher_forced_logits(lengths):
    from models.autoregressive.embedding_prior import _unread

    model, given = trained(), caption(lengths)
    wanted = model.logits(given, LEVEL, CODES)
    caches, logits = model.start(given, LEVEL)
    mask = _unread(given.mask, caches[0].filled, caches[0].dtype)
    found = [logits]
    for place in range(3):
        found.append(model.follow(CODES[:, place], place, caches, mask))
    torch.testing.assert_close(torch.stack(found, dim=1), wanted, rtol=0, atol=2e-6)


def test_samples_are_decoded_codes_and_the_best_code_needs_no_chance():
    model, given = trained(), caption()
    greedy = Sampling(top_k=1)
    first, second = (
        generate_embeddings(model, given, torch.Generator().manual_seed(seed), greedy, level=LEVEL)
        for seed in (0, 1)
    )
    assert torch.equal(first, second)
    codes = model.codec.encode(first)
    logits = model.logits(given, LEVEL, codes)
    assert torch.equal(logits.argmax(dim=2), codes)


def test_guidance_goes_from_the_empty_caption_to_the_caption():
    model, given, none = trained(), caption(), caption((1, 1, 1), seed=7)
    greedy = Sampling(top_k=1, guidance=0.0)
    found = generate_embeddings(model, given, torch.Generator(), greedy, empty=none, level=LEVEL)
    alone = generate_embeddings(model, none, torch.Generator(), Sampling(top_k=1), level=LEVEL)
    assert torch.equal(found, alone)


def test_levels_come_from_the_upper_half():
    model, given = trained(), caption()
    seen = []
    model.level.register_forward_hook(lambda layer, levels, out: seen.append(levels[0]))
    for seed in range(20):
        generate_embeddings(model, given, torch.Generator().manual_seed(seed), Sampling())
    assert torch.cat(seen).unique().tolist() == [2, 3]


def test_a_sample_does_not_depend_on_its_neighbours():
    model, given = trained(), caption()

    def rng(*seeds):
        return BatchGenerator.of([torch.Generator().manual_seed(seed) for seed in seeds])

    whole = generate_embeddings(model, given, rng(1, 2, 3), Sampling())
    one = ClipCaption(*(part[1:2] for part in given))
    alone = generate_embeddings(model, one, rng(2), Sampling())
    torch.testing.assert_close(alone, whole[1:2])


def test_what_cannot_be_sampled_is_refused():
    new = TINY.build().eval()
    with pytest.raises(UserError, match="train it first"):
        generate_embeddings(new, caption(), torch.Generator(), Sampling())
    with pytest.raises(UserError, match="needs empty captions"):
        generate_embeddings(trained(), caption(), torch.Generator(), Sampling(guidance=2.0))


@pytest.mark.parametrize("change", [{"components": 7}, {"heads": 3}, {"levels": 5}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValidationError):
        EmbeddingPriorConfig(**{**TINY.model_dump(), **change})
