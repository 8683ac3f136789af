"""A prior per level of a VQ-VAE-2, each conditioned on the coarser codes."""

import pytest
import torch
from models.systems.hierarchy import Hierarchy, LevelShape, level_prefix, level_shapes

from mezzotint.common.errors import UserError
from models.autoencoders.hierarchical import VQVAE2Config
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


def hierarchy():
    torch.manual_seed(0)
    shapes = level_shapes(CONFIG, text_vocab=50, text_length=4)
    return Hierarchy([prior(shape).eval() for shape in shapes.values()], CONFIG.build().eval())


def test_each_level_has_room_for_the_caption_and_all_coarser_codes():
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
    system = hierarchy()
    text = torch.tensor([[3, 4, 0, 0], [5, 0, 0, 0]])

    def drawn(seed):
        return system.sample(text, torch.Generator().manual_seed(seed), sampling=Sampling())

    first = drawn(0)
    assert first.images.shape == (2, 3, 16, 16)
    assert [tuple(codes.shape[1:]) for codes in first.codes] == list(CONFIG.grids)
    assert torch.equal(first.images, drawn(0).images)
    assert not torch.equal(first.codes[2], drawn(1).codes[2])
    assert torch.equal(first.images, system.autoencoder.decode(first.codes))


def test_a_finer_prior_reads_the_coarser_codes():
    system = hierarchy()
    text, bottom = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 64, dtype=torch.int64)

    def logits(top):
        codes = [torch.full((1, 2, 2), top), torch.zeros(1, 4, 4, dtype=torch.int64)]
        return system.priors[2](level_prefix(text, codes, 50, [10, 10]), bottom).image

    assert not torch.allclose(logits(1), logits(2))


def test_priors_of_another_shape_and_guidance_below_the_top_are_refused():
    system = hierarchy()
    with pytest.raises(UserError, match="3 levels need as many priors"):
        Hierarchy(system.priors[:2], system.autoencoder)
    with pytest.raises(UserError, match="the prior of level middle is"):
        Hierarchy([system.priors[0]] * 3, system.autoencoder)
    rng = torch.Generator().manual_seed(0)
    text = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(UserError, match="top level's caption only"):
        system.sample(text, rng, sampling=[Sampling(guidance=2.0)] * 3)
    assert system.sample(text, rng, sampling=Sampling(guidance=2.0)).images.shape == (1, 3, 16, 16)
