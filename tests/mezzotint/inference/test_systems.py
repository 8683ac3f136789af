"""What inference composes."""

import pytest
import torch
from models.systems.cascade import Cascade, StageSampling, draw
from models.systems.dalle import Dalle, ranked

from mezzotint.common.errors import UserError
from models.autoencoders.dvae import DVAEConfig
from models.autoregressive.decoding import Sampling
from models.autoregressive.prior import PriorConfig
from models.clip import ClipConfig
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.network import UNetConfig

TEXT = torch.tensor([[3, 4, 0], [5, 0, 0]])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    dvae = DVAEConfig(image_size=16, vocab=8, width=8, groups=2, patch=2, first=8).build().eval()
    prior = (
        PriorConfig(
            text_vocab=9,
            text_length=3,
            image_vocab=8,
            grid=(4, 4),
            width=16,
            layers=1,
            heads=1,
            head_width=16,
        )
        .build()
        .eval()
    )
    clip = (
        ClipConfig(
            image_size=8,
            patch=4,
            vision_width=16,
            vision_layers=1,
            text_vocab=9,
            text_length=3,
            text_width=16,
            text_layers=1,
            head_width=8,
            embed=8,
        )
        .build()
        .eval()
    )
    return prior, dvae, clip


class Brightness:
    """Scores an image by its mean colour, for captions whose vector is the first axis."""

    def encode_image(self, image):
        mean = image.mean(dim=(1, 2, 3))
        return torch.stack([mean, (1 - mean**2).clamp(min=0).sqrt()], dim=1)

    def encode_text(self, tokens):
        return torch.tensor([[1.0, 0.0]]).expand(len(tokens), -1)


def test_dalle_ranks_candidates_by_their_score(parts):
    prior, dvae, _ = parts
    samples = Dalle(prior, dvae, Brightness()).sample(
        TEXT, TEXT, rng(), candidates=5, sampling=Sampling()
    )
    assert samples.images.shape == (2, 5, 3, 16, 16)
    assert samples.codes.shape == (2, 5, 4, 4)
    brightness = samples.images.mean(dim=(2, 3, 4))
    assert torch.allclose(samples.scores, brightness, atol=1e-6)
    assert torch.equal(samples.ranking[:, 0], brightness.argmax(1))
    assert torch.equal(samples.best()[1], samples.images[1, samples.ranking[1, 0]])
    decoded = dvae.decode_tokens(samples.codes[0])
    assert torch.allclose(decoded, samples.images[0], atol=1e-5)


def test_dalle_without_clip_keeps_the_order_and_with_clip_wants_its_tokens(parts):
    prior, dvae, clip = parts
    plain = Dalle(prior, dvae).sample(TEXT, None, rng(), candidates=3, sampling=Sampling())
    assert plain.scores is None
    assert plain.ranking.tolist() == [[0, 1, 2], [0, 1, 2]]
    scored = Dalle(prior, dvae, clip).sample(TEXT, TEXT, rng(), candidates=3, sampling=Sampling())
    assert torch.equal(scored.codes, plain.codes)
    assert float(scored.scores.abs().max()) <= 1 + 1e-5
    with pytest.raises(UserError, match="tokens of the CLIP's tokenizer"):
        Dalle(prior, dvae, clip).sample(TEXT, None, rng(), candidates=3, sampling=Sampling())


def test_dalle_refuses_a_prior_over_another_codebook(parts):
    prior, _, _ = parts
    other = DVAEConfig(image_size=16, vocab=16, width=8, groups=2, patch=2, first=8).build()
    with pytest.raises(UserError, match="training tokens"):
        Dalle(prior, other)


def test_equal_scores_keep_the_order_of_drawing():
    assert ranked(torch.tensor([[0.5, 0.7, 0.5, 0.7]])).tolist() == [[1, 3, 0, 2]]


@pytest.fixture(scope="module")
def cascade():
    torch.manual_seed(0)
    base = (
        TextDiffusionConfig(
            image_size=8, patch=4, width=16, layers=2, heads=1, text_vocab=9, text_length=3
        )
        .build()
        .eval()
    )
    upsampler = SuperResolutionConfig(low_size=8, image_size=16, channels=(8,), blocks=1).build()
    with torch.no_grad():
        for parameter in (*base.parameters(), *upsampler.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=rng(1)) * 0.1)
    return Cascade(base, upsampler.eval())


def sample(cascade, seed=0, **base):
    seen = []
    drawn = cascade.sample(
        TEXT,
        rng(seed),
        base=StageSampling(steps=4, **base),
        upsampler=StageSampling(steps=2, level=0.1),
        progress=lambda done, total: seen.append((done, total)),
    )
    return drawn, seen


def test_the_cascade_draws_both_sizes_and_repeats_under_its_generator(cascade):
    drawn, seen = sample(cascade, guidance=2.0)
    assert drawn.base.shape == (2, 3, 8, 8)
    assert drawn.images.shape == (2, 3, 16, 16)
    assert float(drawn.images.abs().max()) <= 1
    assert seen == [(step, 6) for step in range(1, 7)]
    assert torch.equal(drawn.images, sample(cascade, guidance=2.0)[0].images)
    assert not torch.equal(drawn.base, sample(cascade, seed=1, guidance=2.0)[0].base)


def test_guidance_zero_ignores_the_caption(cascade):
    sampling = StageSampling(steps=3, guidance=0.0)
    one = draw(cascade.base, TEXT, rng(), sampling=sampling)
    two = draw(cascade.base, TEXT.flip(0), rng(), sampling=sampling)
    assert torch.equal(one, two)
    sampling = StageSampling(steps=3, guidance=2.0)
    one = draw(cascade.base, TEXT, rng(), sampling=sampling)
    two = draw(cascade.base, TEXT.flip(0), rng(), sampling=sampling)
    assert not torch.allclose(one, two)


def test_a_base_of_any_process_starts_from_noise_as_loud_as_its_own():
    schedule = {"kind": "edm", "sigma_max": 40.0}
    config = {
        "image_size": 8,
        "channels": 8,
        "multipliers": [1],
        "depth": 1,
        "attention": [],
        "head_width": 8,
        "groups": 2,
        "text": {"vocab": 9, "length": 3, "width": 8, "layers": 1, "heads": 1},
        "process": {"schedule": schedule, "prediction_type": "noise"},
    }
    base = UNetConfig.model_validate(config).build().eval()
    heard = []
    base.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    draw(base, TEXT, rng(), sampling=StageSampling(steps=2))
    assert float(heard[0].std()) == pytest.approx(40, rel=0.15)
