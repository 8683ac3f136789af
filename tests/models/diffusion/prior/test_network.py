"""The diffusion prior: published sizes, causality under any mask, and its two ways to compute."""

import pytest
import torch
from pydantic import ValidationError

from mezzotint.common.embedding_scaling import EmbeddingScaling
from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.guidance import with_guidance, without_text
from models.diffusion.losses import simple_loss
from models.diffusion.prior.network import DiffusionPriorConfig
from models.diffusion.process import denoiser
from models.nn.initialization import materialize

TINY = DiffusionPriorConfig(dim=6, features={"width": 5}, length=7, width=16, layers=3, heads=2)
LENGTHS = (3, 7, 0, 5)
TIMES = torch.tensor([0.2, 0.7, 0.001, 1.0])


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def caption(lengths=LENGTHS, seed=1):
    """Features of captions, with padding after these many tokens."""
    mask = None
    if lengths is not None:
        mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    return Condition(
        features=noise(4, 7, 5, seed=seed),
        features_mask=mask,
        text_embedding=noise(4, 6, seed=seed + 1),
    )


X = noise(4, 6)


def trained(config=TINY):
    torch.manual_seed(0)
    model = config.build().eval()
    with torch.no_grad():
        for place, weight in enumerate(model.parameters()):
            if weight.requires_grad:
                weight.add_(noise(*weight.shape, seed=place) * 0.2)
    return model


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ({"dim": 768, "features": {"width": 768}, "length": 77}, 1_022_030_080),
        ({"dim": 1024, "features": {"width": 1024}, "length": 256, "layers": 24}, 1_225_927_680),
    ],
)
def test_the_published_priors_have_exactly_their_parameters(shape, parameters):
    with torch.device("meta"):
        model = DiffusionPriorConfig(**shape).build()
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_training_uses_every_parameter_but_the_statistics_of_embeddings():
    model = trained().train()
    model(X, TIMES, caption()).square().sum().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == ["mean", "std"]


def states(model, condition):
    """Outputs of the block before the last at all positions, with their graph."""
    found = []
    handle = model.blocks[-2].register_forward_hook(lambda block, given, out: found.append(out))
    model(X, TIMES, condition)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("lengths", [None, (7, 7, 7, 7), LENGTHS], ids=["none", "ones", "padded"])
def test_no_position_sees_a_later_one_whatever_the_mask(lengths):
    model, condition = trained(), caption(lengths)
    features = condition.features.requires_grad_()
    for row, tokens in enumerate(lengths or (7,) * 4):
        for place in range(tokens):
            (slope,) = torch.autograd.grad(
                states(model, condition)[row, place].square().sum(), features
            )
            assert not slope[row, place + 1 :].any()
            assert slope[row, : place + 1].any()


def test_padding_has_no_influence_and_tokens_do():
    model, condition = trained(), caption()
    features = condition.features.requires_grad_()
    model(X, TIMES, condition).square().sum().backward()
    read = features.grad.abs().sum(dim=2) > 0
    assert torch.equal(read, condition.features_mask)


@pytest.mark.parametrize("lengths", [None, (7, 7, 7, 7), LENGTHS, (4, 4, 4, 4)])
def test_sampling_computes_what_training_does(lengths):
    model, condition = trained(), caption(lengths)
    whole = model(X, TIMES, condition).detach()
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(X, TIMES, condition), whole, rtol=0, atol=2e-6)


def test_a_mask_with_gaps_leaves_out_what_it_names():
    model, condition = trained(), caption((7, 7, 7, 7))
    condition.features_mask[:, 2:4] = False
    features = condition.features.requires_grad_()
    value = model(X, TIMES, condition)
    value.square().sum().backward()
    read = features.grad.abs().sum(dim=2) > 0
    assert torch.equal(read, condition.features_mask)
    with torch.no_grad():
        torch.testing.assert_close(model(X, TIMES, condition), value, rtol=0, atol=2e-6)


@torch.no_grad()
def test_the_caption_is_read_once_per_sampling_run_and_again_where_any_of_it_changes():
    model, condition = trained(), caption()
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    run = denoiser(model)
    first = run(X, TIMES, condition).x0
    run(X * 2, TIMES, condition)
    torch.testing.assert_close(run(X, TIMES, condition).x0, first, rtol=0, atol=0)
    assert len(calls) == 1
    other = caption(seed=5)
    mixed = Condition(
        features=other.features,
        features_mask=condition.features_mask,
        text_embedding=condition.text_embedding,
    )
    assert not torch.allclose(run(X, TIMES, mixed).x0, first)


@torch.no_grad()
def test_guidance_goes_from_the_empty_caption_to_the_caption():
    model, condition = trained(), caption()
    empty = caption(seed=9)
    condition = Condition(
        features=condition.features,
        features_mask=condition.features_mask,
        text_embedding=condition.text_embedding,
        empty_features=empty.features[0],
        empty_features_mask=empty.features_mask[0],
        empty_text_embedding=empty.text_embedding[0],
    )
    run = denoiser(model)
    conditional, none = run(X, TIMES, condition).x0, run(X, TIMES, condition.without_text).x0
    guided = with_guidance(run, without_text(run), 4.0)(X, TIMES, condition).x0
    torch.testing.assert_close(guided, none + 4 * (conditional - none))
    alone = Condition(
        features=empty.features[:1].expand(4, -1, -1),
        features_mask=empty.features_mask[:1].expand(4, -1),
        text_embedding=empty.text_embedding[:1].expand(4, -1),
    )
    torch.testing.assert_close(none, run(X, TIMES, alone).x0)


def test_the_loss_of_a_new_prior_is_that_of_its_process():
    model = TINY.build()
    clean, t = noise(4, 6, seed=3), TIMES
    errors = simple_loss(model, model.process, clean, caption(), t, X)
    noisy = model.process.add_noise(clean, t, X)
    raw = model(noisy, t, caption())
    torch.testing.assert_close(errors.value, (raw - clean).square().mean(dim=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": None}, "needs the features of captions"),
        ({"features": noise(4, 6, 5)}, "takes 7 tokens of 5 features, got 6 of 5"),
        ({"text_embedding": None}, "of 6 values, got none; set model.dim"),
        ({"text_embedding": noise(4, 8)}, "of 6 values, got 8 values"),
    ],
)
def test_captions_of_another_encoder_are_refused(change, message):
    condition = caption()
    given = {
        "features": condition.features,
        "features_mask": None,
        "text_embedding": condition.text_embedding,
    }
    model = TINY.build().eval()
    with torch.no_grad(), pytest.raises(UserError, match=message):
        model(X, TIMES, Condition(**{**given, **change}))


@pytest.mark.parametrize(
    "change", [{"heads": 3}, {"process": {"prediction_type": "x0", "variance": "learned"}}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValidationError):
        DiffusionPriorConfig(**{**TINY.model_dump(), **change})


def test_the_statistics_of_embeddings_are_kept_with_the_weights():
    scaling = EmbeddingScaling(
        kind="mean_std", dim=6, samples=9, mean=tuple(range(6)), std=tuple(range(1, 7))
    )
    with torch.device("meta"):
        model = TINY.build()
    model.keep_scaling(scaling)
    assert len(list(materialize(model, 0, device=torch.device("cpu")))) > 0
    torch.testing.assert_close(X * model.std + model.mean, scaling.denormalize(X))
