"""Sampling codes: cache, guidance, filtering and completion."""

import contextlib
import copy

import pytest
import torch

from mezzotint.common.errors import UserError
from models.autoregressive.cuda_graph_decoder import CudaGraphDecoder
from models.autoregressive.decoding import Sampling, filter_logits, generate, token_predictor
from models.autoregressive.prior import PriorConfig
from models.nn.cpu import plain_torch
from models.nn.cpu.decoder import has_no_hooks

CONFIG = PriorConfig(
    text_vocab=11,
    text_length=4,
    image_vocab=13,
    grid=(4, 4),
    width=32,
    layers=3,
    heads=2,
    head_width=16,
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    model = CONFIG.build().eval()
    # far from uniform, so that the distribution depends on what came before
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


@pytest.fixture
def text():
    text = torch.randint(1, 11, (6, 4), generator=rng(5))
    text[0, 2:] = 0
    return text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance": 3.0},
        {"guidance": 0.0},
        {"temperature": 0.7, "top_k": 5},
        {"top_p": 0.8, "guidance": 1.5},
    ],
)
def test_the_cache_does_not_change_the_tokens(prior, text, options):
    cached = generate(prior, text, rng(1), sampling=Sampling(**options))
    plain = generate(prior, text, rng(1), sampling=Sampling(cache=False, **options))
    assert torch.equal(cached, plain)
    assert len(cached.unique()) > 3
    assert not torch.equal(cached, generate(prior, text, rng(2), sampling=Sampling(**options)))


@pytest.mark.parametrize("cache", [True, False])
def test_a_prefix_is_kept_and_completed(prior, text, cache):
    prefix = torch.randint(13, (6, 7), generator=rng(9))
    codes = generate(prior, text, rng(1), sampling=Sampling(cache=cache), prefix=prefix)
    assert codes.shape == (6, 16)
    assert torch.equal(codes[:, :7], prefix)
    again = generate(prior, text, rng(1), sampling=Sampling(cache=not cache), prefix=prefix)
    assert torch.equal(codes, again)


def test_a_whole_prefix_is_returned_as_it_is(prior, text):
    prefix = torch.randint(13, (6, 16), generator=rng(9))
    assert torch.equal(generate(prior, text, rng(), sampling=Sampling(), prefix=prefix), prefix)


def test_tokens_follow_the_teacher_forced_distribution(prior):
    text = torch.randint(1, 11, (1, 4), generator=rng(5)).expand(4000, -1)
    prefix = torch.randint(13, (1, 15), generator=rng(9)).expand(4000, -1)
    samples = generate(prior, text, rng(1), sampling=Sampling(), prefix=prefix)[:, -1]
    share = torch.bincount(samples, minlength=13) / 4000
    whole = torch.cat([prefix[:1], torch.zeros(1, 1, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        wanted = prior(text[:1], whole).image[0, -1].softmax(-1)
    deviation = (wanted * (1 - wanted) / 4000).sqrt()
    assert bool(((share - wanted).abs() <= 4 * deviation + 1e-3).all())


def test_guidance_one_is_conditional_and_zero_is_the_empty_caption(prior, text):
    empty = torch.zeros_like(text)
    unconditional = generate(prior, empty, rng(1), sampling=Sampling())
    assert torch.equal(
        generate(prior, text, rng(1), sampling=Sampling(guidance=0.0)), unconditional
    )
    assert not torch.equal(generate(prior, text, rng(1), sampling=Sampling()), unconditional)


def test_top_k_keeps_the_k_best():
    logits = torch.tensor([[1.0, 4.0, 3.0, 2.0]])
    kept = filter_logits(logits, Sampling(top_k=2))
    assert torch.equal(kept.isfinite(), torch.tensor([[False, True, True, False]]))
    assert torch.equal(filter_logits(logits, Sampling(top_k=9)), logits)


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    assert torch.equal(
        filter_logits(logits, Sampling(top_p=0.6)).isfinite(), torch.tensor([[False, True, True]])
    )
    assert torch.equal(
        filter_logits(logits, Sampling(top_p=0.4)).isfinite(), torch.tensor([[False, True, False]])
    )
    assert torch.equal(filter_logits(logits, Sampling(top_p=1.0)), logits)


def test_temperature_divides_the_logits():
    logits = torch.tensor([[1.0, 2.0]])
    assert torch.equal(filter_logits(logits, Sampling(temperature=0.5)), logits * 2)


def test_progress_counts_the_codes(prior, text):
    seen = []
    generate(
        prior,
        text[:1],
        rng(),
        sampling=Sampling(),
        prefix=torch.zeros(1, 12, dtype=torch.int64),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_captions_and_prefixes_of_the_wrong_length_are_refused(prior, text):
    with pytest.raises(UserError, match="text_length is 4"):
        generate(prior, text[:, :3], rng(), sampling=Sampling())
    with pytest.raises(UserError, match="17 codes"):
        generate(
            prior, text, rng(), sampling=Sampling(), prefix=torch.zeros(6, 17, dtype=torch.int64)
        )


MASKED = [("dense", None), ("paper", 3), ("paper", None), ("dalle_pytorch", 3)]


@pytest.fixture(scope="module", params=MASKED, ids=str)
def masked(request):
    flavor, kernel = request.param
    config = CONFIG.model_copy(
        update={"mask_flavor": flavor, "mask_kernel": kernel, "layers": 6, "grid": (5, 4)}
    )
    torch.manual_seed(0)
    model = config.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


@pytest.mark.parametrize("known", [0, 1, 7])
@pytest.mark.parametrize("options", [{}, {"guidance": 2.0, "top_k": 9}])
def test_the_caches_of_every_mask_give_the_same_tokens(masked, text, known, options):
    prefix = torch.randint(13, (6, known), generator=rng(9))
    cached, plain = (
        generate(masked, text, rng(1), sampling=Sampling(cache=cache, **options), prefix=prefix)
        for cache in (True, False)
    )
    assert torch.equal(cached, plain)
    assert len(cached.unique()) > 3


@pytest.mark.parametrize("known", [0, 1, 7])
def test_steps_of_fixed_shapes_give_the_same_tokens(masked, text, known, monkeypatch):
    prefix = torch.randint(13, (6, known), generator=rng(9))
    wanted = generate(masked, text, rng(1), sampling=Sampling(), prefix=prefix)
    monkeypatch.setattr(
        "models.autoregressive.decoding.token_predictor",
        lambda prior, text, cache: CudaGraphDecoder(prior, text),
    )
    assert torch.equal(generate(masked, text, rng(1), sampling=Sampling(), prefix=prefix), wanted)


def logits_of(predictor, codes):
    return torch.stack([predictor(codes[:, :position]) for position in range(20)])


def logits_by_modules(prior, text, codes):
    with plain_torch("decoder"):
        return logits_of(token_predictor(prior, text, cache=True), codes)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "autocast"])
def test_single_places_give_the_logits_of_whole_modules(masked, kind):
    text = torch.randint(1, 11, (6, 4), generator=rng(5))
    codes = torch.randint(13, (6, 20), generator=rng(9))
    prior = copy.deepcopy(masked)
    for weight in prior.parameters():
        weight.data = weight.bfloat16().float()
    with torch.no_grad():
        exact = logits_by_modules(prior, text, codes)
    if kind == "bf16":
        prior.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        predictor = token_predictor(prior, text, cache=True)
        single, modules = logits_of(predictor, codes), logits_by_modules(prior, text, codes)
        assert predictor._decoder is not None
    if kind == "fp32":
        assert torch.equal(single, modules)
    # rounded at fewer positions
    assert float((single - exact).norm()) <= 1.1 * float((modules - exact).norm())


def test_a_prior_with_hooks_or_another_forward_is_called_module_by_module(text):
    prior = CONFIG.build().eval()
    wanted = generate(prior, text, rng(1), sampling=Sampling())
    seen = []
    handle = prior.blocks[1].feed_forward.register_forward_pre_hook(lambda *_: seen.append(1))
    assert torch.equal(generate(prior, text, rng(1), sampling=Sampling()), wanted)
    assert len(seen) == CONFIG.image_length
    handle.remove()
    assert has_no_hooks(prior)
    prior.image_head.forward = prior.image_head.forward
    assert not has_no_hooks(prior)


def test_a_step_of_a_single_place_takes_fewer_operations_than_the_modules(prior, text, counting):
    codes = torch.randint(13, (6, 16), generator=rng(9))
    counts = []
    with torch.no_grad():
        for pieces in (["decoder"], []):
            predictor = token_predictor(prior, text, cache=True)
            with contextlib.ExitStack() as stack:
                if pieces:
                    stack.enter_context(plain_torch(*pieces))
                predictor(codes[:, :5])
            with counting() as counted:
                predictor(codes[:, :6])
            counts.append(counted.count)
    modules, single = counts
    assert single < modules


def test_a_paper_shaped_prior_caches_two_and_a_half_times_less_than_a_dense_one():
    config = PriorConfig(
        text_vocab=16384,
        text_length=256,
        image_vocab=8192,
        grid=(32, 32),
        layers=64,
        mask_flavor="paper",
    )
    kept = [pattern.cache_size(1024) for pattern in config.patterns]
    entries = sum(config.prefix_length + each for each in kept)
    assert sorted(set(kept)) == [33, 166, 1024]
    assert 64 * (config.prefix_length + 1024) / entries == pytest.approx(2.37, abs=0.01)
