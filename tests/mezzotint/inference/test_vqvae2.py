"""A prior per level of a VQ-VAE-2, each conditioned on the coarser codes."""

import pytest
import torch

from mezzotint.common.errors import UserError
from mezzotint.inference.config import HierarchySystem
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.images import to_bytes
from mezzotint.inference.runtime import Runtime
from mezzotint.inference.vqvae2 import VQVAE2Generator
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoencoders.levels import LevelShape, level_prefix, level_shapes
from models.autoencoders.quantizer import EmaVectorQuantizerConfig
from models.autoencoders.strided import StridedPyramid
from models.autoregressive.decoding import Sampling
from models.autoregressive.prior import PriorConfig

CONFIG = VQVAE2Config(
    image_size=16,
    levels=3,
    channels=8,
    pyramid=StridedPyramid(width=16, halvings=1, blocks=1, residual_width=8),
    bottleneck=EmaVectorQuantizerConfig(codes=10),
)
TEXT = {"a": [3, 4, 0, 0], "b": [5, 0, 0, 0]}
PROMPTS = tuple(map(Prompt, TEXT))


def tokenize(captions):
    return torch.tensor([TEXT[caption] for caption in captions])


def prior(shape):
    return PriorConfig(
        text_vocab=shape.text_vocab,
        text_length=shape.text_length,
        image_vocab=shape.image_vocab,
        grid=shape.grid,
        width=16,
        layers=1,
        heads=1,
        head_width=16,
    ).build()


def generator(change=lambda priors: priors, **sampling):
    torch.manual_seed(0)
    shapes = level_shapes(CONFIG, text_vocab=50, text_length=4)
    priors = change(tuple(prior(shape).eval() for shape in shapes.values()))
    config = HierarchySystem(
        priors=("1", "2"), autoencoder="a", candidates=1, sampling=Sampling(**sampling)
    )
    return VQVAE2Generator(
        config, priors, CONFIG.build().eval(), tokenize, Runtime.of(precision="fp32")
    )


def test_each_level_has_positions_for_the_caption_and_all_coarser_codes():
    assert level_shapes(CONFIG, text_vocab=50, text_length=4) == {
        "top": LevelShape(50, 4, 10, (2, 2)),
        "middle": LevelShape(60, 8, 10, (4, 4)),
        "bottom": LevelShape(70, 24, 10, (8, 8)),
    }
    assert level_shapes(VQVAE2Config())["bottom"] == LevelShape(514, 1025, 512, (64, 64))


def test_coarser_codes_are_numbered_after_the_captions_pieces():
    text = torch.tensor([[7, 0]])
    coarser = [torch.tensor([[[0, 9]]]), torch.tensor([[[3], [4]]])]
    assert level_prefix(text, coarser, 50, [10, 10]).tolist() == [[7, 0, 50, 59, 63, 64]]


def test_samples_are_decoded_codes_of_every_level_and_repeat_under_a_seed():
    system = generator()

    def codes(seed):
        return system.sample_codes(tokenize("ab"), torch.Generator().manual_seed(seed))

    first = codes(0)
    assert [tuple(each.shape[1:]) for each in first] == list(CONFIG.grids)
    assert all(torch.equal(*pair) for pair in zip(first, codes(0), strict=True))
    assert not torch.equal(first[2], codes(1)[2])
    seen = []
    request = GenerationRequest(PROMPTS, number=2)
    result = system.generate(request, progress=lambda *done: seen.append(done))
    assert result.images.shape == (2, 2, 16, 16, 3)
    assert torch.equal(result.images, system.generate(request).images)
    assert seen[-1] == (4, 4)
    assert to_bytes(system.autoencoder.decode(first)).shape == result.images[:, 0].shape


def test_an_image_does_not_depend_on_what_is_generated_with_it():
    system = generator()
    whole = system.generate(GenerationRequest(PROMPTS, number=3)).images
    alone = system.generate(GenerationRequest(PROMPTS[1:], number=2)).images
    assert int((whole[1:, :2].int() - alone.int()).abs().max()) <= 1


def test_a_finer_prior_reads_the_coarser_codes():
    system = generator()
    text, bottom = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 64, dtype=torch.int64)

    def logits(top):
        codes = [torch.full((1, 2, 2), top), torch.zeros(1, 4, 4, dtype=torch.int64)]
        return system.priors[2](level_prefix(text, codes, 50, [10, 10]), bottom).image

    assert not torch.allclose(logits(1), logits(2))


def test_priors_of_another_shape_are_refused_and_guidance_acts_on_the_top_level():
    with pytest.raises(UserError, match="3 levels need as many priors"):
        generator(lambda priors: priors[:2])
    with pytest.raises(UserError, match="the prior of level middle is"):
        generator(lambda priors: (priors[0],) * 3)
    text, calls = tokenize("a"), []
    system = generator(guidance=2.0)
    for level in system.priors:
        level.register_forward_pre_hook(lambda _, given: calls.append(len(given[0])))
        embed = level.embed_text
        level.embed_text = lambda rows, embed=embed: calls.append(len(rows)) or embed(rows)
    codes = system.sample_codes(text, torch.Generator().manual_seed(0))
    assert system.autoencoder.decode(codes).shape == (1, 3, 16, 16)
    assert calls == [2, 1, 1]  # rows read: with and without the caption, then one each
