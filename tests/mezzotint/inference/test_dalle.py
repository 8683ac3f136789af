"""DALL-E as a generator: ranking, completion from a prefix of codes, and blocks."""

import pytest
import torch

from mezzotint.common.errors import UserError
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.config import DalleSystem
from mezzotint.inference.dalle import DalleGenerator
from mezzotint.inference.generator import GenerationRequest, Prompt, ranking
from mezzotint.inference.images import to_bytes
from mezzotint.inference.runtime import Runtime
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.quantizer import EmaVectorQuantizerConfig
from models.autoencoders.strided import StridedPyramid
from models.autoregressive.decoding import Sampling
from models.autoregressive.prior import PriorConfig

TEXT = {"a": [3, 4, 0], "b": [5, 0, 0], "c": [1, 2, 3]}
PROMPTS = tuple(map(Prompt, TEXT))


def tokenize(captions):
    return torch.tensor([TEXT[caption] for caption in captions])


class Brightness:
    """Scores an image by its mean colour, for captions whose vector is the first axis."""

    def encode_image(self, image):
        mean = image.mean(dim=(1, 2, 3))
        return torch.stack([mean, (1 - mean**2).clamp(min=0).sqrt()], dim=1)

    def encode_text(self, tokens):
        return torch.tensor([[1.0, 0.0]]).expand(len(tokens), -1)


def generator(dvae, ranker=Brightness):
    torch.manual_seed(0)
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
    clip = ranker and ClipEmbedder(ranker(), tokenize, "", {}, torch.device("cpu"))
    config = DalleSystem(prior="p", dvae="d", candidates=1, sampling=Sampling(guidance=1.5))
    return DalleGenerator(
        config, prior.build().eval(), dvae, tokenize, Runtime.of(precision="fp32"), clip
    )


def tiny_dvae(vocab=8):
    torch.manual_seed(0)
    config = DVAEConfig(image_size=16, vocab=vocab, width=8, groups=2, patch=2, initial_width=8)
    return config.build().eval()


@pytest.fixture(scope="module")
def dalle():
    return generator(tiny_dvae())


def generate(dalle, prompts=PROMPTS, number=5, **settings):
    return dalle.generate(GenerationRequest(prompts, number=number, **settings))


def test_candidates_are_scored_and_the_best_come_first(dalle):
    result = generate(dalle, seed=7)
    assert result.images.shape == (3, 5, 16, 16, 3)
    assert result.codes.shape == (3, 5, 4, 4)
    decoded = dalle.dvae.decode_tokens(result.codes.flatten(0, 1)).unflatten(0, (3, 5))
    assert int((to_bytes(decoded).int() - result.images.int()).abs().max()) <= 1
    brightness = decoded.mean(dim=(2, 3, 4))
    assert torch.allclose(result.scores, brightness, atol=1e-6)
    best = result.top(2).images
    assert best.shape == (3, 2, 16, 16, 3)
    assert torch.equal(best[:, :1], result.top().images)
    order = result.scores.argsort(dim=1, descending=True)
    assert torch.equal(best[1, 1], result.images[1, order[1, 1]])
    shown = result.top(2).scores
    assert torch.equal(shown, result.scores.gather(1, ranking(result.scores)[:, :2]))
    assert torch.equal(result.top().codes[2, 0], result.codes[2, order[2, 0]])
    assert bool((shown[:, 0] >= shown[:, 1]).all())
    assert torch.equal(shown[:, 0], result.scores.max(dim=1).values)


def test_an_image_does_not_depend_on_what_is_generated_with_it(dalle):
    whole = generate(dalle, seed=7)
    alone = generate(dalle, PROMPTS[1:2], number=3, seed=7)
    assert torch.equal(whole.codes[1:2, :3], alone.codes)
    assert torch.equal(generate(dalle, seed=7, batch_size=4).codes, whole.codes)
    assert not torch.equal(generate(dalle, seed=8).codes, whole.codes)
    assert len(whole.codes.flatten(0, 1).unique(dim=0)) > 5
    twice = (Prompt("a"), Prompt("a", key="again"))
    first, second = generate(dalle, twice, seed=7).codes
    assert torch.equal(first, whole.codes[0])
    assert not torch.equal(second, first)


def test_progress_counts_images(dalle):
    seen = []
    request = GenerationRequest(PROMPTS, number=5, batch_size=4)
    dalle.generate(request, progress=lambda *done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == (15, 15)
    assert len(seen) == 4 * 16


def test_without_a_ranker_there_are_no_scores_and_the_first_images_come_first():
    dvae = tiny_dvae()
    result, scored = generate(generator(dvae, None)), generate(generator(dvae))
    assert result.scores is None
    assert torch.equal(result.top(3).images, result.images[:, :3])
    assert torch.equal(result.codes, scored.codes)
    assert float(scored.scores.abs().max()) <= 1 + 1e-5


def test_equal_scores_keep_their_order():
    assert ranking(torch.tensor([[0.5, 0.7, 0.5, 0.7]])).tolist() == [[1, 3, 0, 2]]


def test_an_image_is_completed_from_its_upper_rows(dalle):
    rng = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (16, 16, 3), generator=rng, dtype=torch.uint8)
    top = dalle.prefix_codes(image, 2)
    result = generate(dalle, number=4, prefix_codes=top)
    assert torch.equal(result.codes[:, :, :2], top.expand(3, 4, -1, -1))
    assert len(result.codes[:, :, 2:].flatten(0, 1).unique(dim=0)) > 4
    whole = dalle.prefix_codes(image, 4)
    kept = generate(dalle, PROMPTS[:1], number=1, prefix_codes=whole)
    assert torch.equal(kept.codes[0, 0], whole)


def test_a_prefix_of_the_wrong_shape_is_refused(dalle):
    with pytest.raises(UserError, match="has 4 rows; 5"):
        dalle.prefix_codes(torch.zeros(16, 16, 3, dtype=torch.uint8), 5)
    with pytest.raises(UserError, match="2 rows of 3"):
        generate(dalle, prefix_codes=torch.zeros(2, 3).long())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": (Prompt("a"), Prompt())}, "captions: a dalle generates from captions"),
        ({"prompts": (Prompt("a", label=1),)}, "--class: a dalle is not conditioned on classes"),
        ({"prompts": ()}, "the request is empty"),
        ({"noise": torch.zeros(5, 3, 16, 16)}, "noise: a dalle does not start from given noise"),
    ],
)
def test_a_request_for_what_a_prior_does_not_take_is_refused(dalle, settings, message):
    with pytest.raises(UserError, match=message):
        generate(dalle, **settings)


def test_a_vq_gan_can_take_the_place_of_the_dvae_and_a_continuous_latent_cannot(dalle):
    torch.manual_seed(0)
    config = AutoencoderConfig(
        image_size=16,
        channels=4,
        pyramid=StridedPyramid(width=8, halvings=1, blocks=1, residual_width=4, patch=2),
        bottleneck=EmaVectorQuantizerConfig(codes=8),
    )
    vqgan = config.build().eval()
    top = vqgan.tokens(torch.zeros(1, 3, 16, 16))[0, :1]
    result = generate(generator(vqgan, None), number=2, prefix_codes=top)
    decoded = to_bytes(vqgan.decode_tokens(result.codes[:, 0]))
    assert int((result.images[:, 0].int() - decoded.int()).abs().max()) <= 1
    assert torch.equal(result.codes[:, 1, :1], top.expand(3, 1, -1))
    continuous = config.model_copy(update={"bottleneck": Gaussian()}).build()
    with pytest.raises(UserError, match="latent is continuous"):
        generator(continuous)
    larger = config.model_copy(update={"bottleneck": EmaVectorQuantizerConfig(codes=9)}).build()
    with pytest.raises(
        UserError, match=r"generates \(4, 4\) codes of 8 and the dvae has \(4, 4\) of 9"
    ):
        generator(larger)
    with pytest.raises(UserError, match="training tokens"):
        generator(tiny_dvae(vocab=16))
