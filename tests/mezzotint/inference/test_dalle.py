"""Completion from a top part, and candidates drawn by several processes."""

import pytest
import torch
from models.systems.dalle import Dalle
from models.systems.sharing import assemble, blocks, draw_share

from mezzotint.common.errors import UserError
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.quantizer import EmaVectorQuantizerConfig
from models.autoencoders.strided import StridedPyramid
from models.autoregressive.decoding import Sampling
from models.autoregressive.prior import PriorConfig

TEXT = torch.tensor([[3, 4, 0], [5, 0, 0], [1, 2, 3]])
SAMPLING = Sampling(guidance=1.5)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Brightness:
    """Scores an image by its mean colour, for captions whose vector is the first axis."""

    def encode_image(self, image):
        mean = image.mean(dim=(1, 2, 3))
        return torch.stack([mean, (1 - mean**2).clamp(min=0).sqrt()], dim=1)

    def encode_text(self, tokens):
        return torch.tensor([[1.0, 0.0]]).expand(len(tokens), -1)


@pytest.fixture(scope="module")
def dalle():
    torch.manual_seed(0)
    dvae = DVAEConfig(image_size=16, vocab=8, width=8, groups=2, patch=2, first=8).build().eval()
    prior = PriorConfig(
        text_vocab=9,
        text_length=3,
        image_vocab=8,
        grid=(4, 4),
        width=16,
        layers=3,
        heads=1,
        head_width=16,
        mask_flavor="paper",
        mask_kernel=3,
    )
    return Dalle(prior.build().eval(), dvae, Brightness())


def draw(dalle, *, world, block=4, seed=7):
    parts = [
        part
        for rank in range(world)
        for part in draw_share(
            dalle, TEXT, TEXT, seed=seed, candidates=5, block=block, sampling=SAMPLING, rank=rank,
            world=world,
        )
    ]  # fmt: skip
    return assemble(parts, len(TEXT), 5)


def test_the_number_of_processes_does_not_change_the_pictures(dalle):
    alone = draw(dalle, world=1)
    assert alone.images.shape == (3, 5, 3, 16, 16)
    for world in (2, 3, 7):
        shared = draw(dalle, world=world)
        assert torch.equal(shared.codes, alone.codes)
        assert torch.equal(shared.images, alone.images)
        assert torch.equal(shared.scores, alone.scores)
        assert torch.equal(shared.ranking, alone.ranking)
    assert not torch.equal(draw(dalle, world=1, seed=8).codes, alone.codes)
    assert len(alone.codes.flatten(0, 1).unique(dim=0)) > 5


def test_shared_candidates_are_ranked_as_those_of_one_process(dalle):
    samples = draw(dalle, world=2)
    assert torch.allclose(samples.scores, samples.images.mean(dim=(2, 3, 4)), atol=1e-6)
    best = samples.best_of(2)
    assert best.shape == (3, 2, 3, 16, 16)
    assert torch.equal(best[:, 0], samples.best())
    brightness = best.mean(dim=(2, 3, 4))
    assert bool((brightness[:, 0] >= brightness[:, 1]).all())


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_candidate_is_in_one_block_of_one_process(world):
    rows = [row for rank in range(world) for part in blocks(11, 3, rank, world) for row in part]
    assert sorted(rows) == list(range(11))
    with pytest.raises(UserError, match="count from 0"):
        blocks(11, 3, world, world)


def test_missing_blocks_are_noticed(dalle):
    parts = draw_share(
        dalle, TEXT, TEXT, seed=7, candidates=5, block=4, sampling=SAMPLING, rank=1, world=2
    )
    with pytest.raises(UserError, match="7 of 15 candidates"):
        assemble(parts, 3, 5)


def test_a_picture_is_completed_from_its_upper_rows(dalle):
    picture = torch.rand(1, 3, 16, 16, generator=rng(3)) * 2 - 1
    top = dalle.top_of(picture, 2).expand(3, -1, -1)
    samples = dalle.sample(TEXT, TEXT, rng(), candidates=4, sampling=SAMPLING, top=top)
    known = dalle.dvae.tokens(picture)[0, :2]
    assert torch.equal(samples.codes[:, :, :2], known.expand(3, 4, -1, -1))
    assert len(samples.codes[:, :, 2:].flatten(0, 1).unique(dim=0)) > 4
    whole = dalle.top_of(picture, 4)
    kept = dalle.sample(TEXT[:1], TEXT[:1], rng(), candidates=1, sampling=SAMPLING, top=whole)
    assert torch.equal(kept.codes[0, 0], whole[0])


def test_a_top_part_of_the_wrong_shape_is_refused(dalle):
    with pytest.raises(UserError, match="has 4 rows; 5"):
        dalle.top_of(torch.zeros(1, 3, 16, 16), 5)
    with pytest.raises(UserError, match="2 rows of 3"):
        dalle.sample(
            TEXT, TEXT, rng(), candidates=1, sampling=SAMPLING, top=torch.zeros(3, 2, 3).long()
        )


def test_scores_need_the_tokens_of_the_clip(dalle):
    with pytest.raises(UserError, match="tokens of the CLIP's tokenizer"):
        draw_share(dalle, TEXT, None, seed=0, candidates=1, block=4, sampling=SAMPLING)


def test_a_vq_gan_can_stand_where_the_dvae_does_and_a_continuous_latent_cannot(dalle):
    torch.manual_seed(0)
    config = AutoencoderConfig(
        image_size=16,
        channels=4,
        pyramid=StridedPyramid(width=8, halvings=1, blocks=1, residual_width=4, patch=2),
        bottleneck=EmaVectorQuantizerConfig(codes=8),
    )
    vqgan = config.build().eval()
    top = vqgan.tokens(torch.zeros(3, 3, 16, 16))[:, :1]
    drawn = Dalle(dalle.prior, vqgan).sample(
        TEXT, None, rng(), candidates=2, sampling=SAMPLING, top=top
    )
    assert torch.equal(drawn.images[:, 0], vqgan.decode_tokens(drawn.codes[:, 0]))
    assert torch.equal(drawn.codes[:, 1, :1], top)
    continuous = config.model_copy(update={"bottleneck": Gaussian()}).build()
    with pytest.raises(UserError, match="latent is continuous"):
        Dalle(dalle.prior, continuous)
    larger = config.model_copy(update={"bottleneck": EmaVectorQuantizerConfig(codes=9)}).build()
    with pytest.raises(
        UserError, match=r"draws \(4, 4\) codes of 8 and the dvae has \(4, 4\) of 9"
    ):
        Dalle(dalle.prior, larger)
