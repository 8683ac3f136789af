"""Autoencoders from a pyramid and a bottleneck: shapes, counts, gradients."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from mezzotint.common.errors import UserError
from models.activation_checkpointing import enable_activation_checkpointing
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian, Identity, kl_to_normal
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoencoders.quantizer import EmaVectorQuantizerConfig, VectorQuantizerConfig
from models.autoencoders.resnet import ResnetPyramid
from models.autoencoders.strided import StridedPyramid
from models.config import ModelConfig

RESNET = ResnetPyramid(width=8, multipliers=(1, 2), blocks=1, groups=4, attention=(8,))
PATCHED = ResnetPyramid(width=8, multipliers=(1, 2), blocks=1, groups=4, patch=2)
STRIDED = StridedPyramid(width=16, halvings=1, blocks=1, residual_width=8, patch=2)
BOTTLENECKS = [
    Identity(),
    Gaussian(),
    VectorQuantizerConfig(codes=16),
    EmaVectorQuantizerConfig(codes=16),
]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=2, size=16):
    return torch.rand(count, 3, size, size, generator=rng()) * 2 - 1


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("channels", "multipliers", "attention", "count"),
    [
        (3, (1, 2, 4), (), 55_312_063),
        (4, (1, 2, 4, 4), (), 83_653_863),
        (16, (1, 1, 2, 2, 4), (16,), 69_610_963),
        (64, (1, 1, 2, 2, 4, 4), (16, 8), 103_880_131),
    ],
)
def test_the_kl_first_stages_of_latent_diffusion_have_the_published_counts(
    channels, multipliers, attention, count
):
    config = AutoencoderConfig(
        image_size=256,
        channels=channels,
        pyramid=ResnetPyramid(multipliers=multipliers, attention=attention),
        bottleneck=Gaussian(),
    )
    with torch.device("meta"):
        assert parameters(config.build()) == count


@pytest.mark.parametrize(
    "pyramid", [RESNET, PATCHED, STRIDED], ids=["resnet", "patched", "strided"]
)
@pytest.mark.parametrize("bottleneck", BOTTLENECKS, ids=lambda config: config.kind)
def test_every_pyramid_goes_with_every_bottleneck(pyramid, bottleneck):
    torch.manual_seed(0)
    config = AutoencoderConfig(image_size=16, channels=4, pyramid=pyramid, bottleneck=bottleneck)
    model = config.build()
    image = images()
    result = model(image, rng())
    side = 16 // pyramid.stride
    assert model.grid == (side, side)
    assert result.output.shape == image.shape
    assert result.latent.value.shape == (2, 4, side, side)
    assert model.encode(image).shape == (2, 4, side, side)
    again = model.reconstruct(image)
    assert again.shape == image.shape
    assert float(again.detach().abs().max()) <= 1
    (result.output.square().mean() + result.latent.loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    if model.discrete:
        codes = model.code_arrays(image)["codes"]
        assert torch.equal(codes, result.latent.codes)
        assert torch.allclose(model.decode_tokens(codes), result.output.clamp(-1, 1), atol=1e-5)
        assert torch.allclose(model.reconstruct(image), model.decode_tokens(codes), atol=1e-5)
    else:
        assert model.code_arrays(image) == {}
        with pytest.raises(UserError, match="use vq or ema_vq"):
            model.tokens(image)


@pytest.mark.parametrize("levels", [2, 3])
def test_a_hierarchy_gives_codes_per_level_and_decodes_them(levels):
    torch.manual_seed(0)
    config = VQVAE2Config(
        image_size=32,
        levels=levels,
        channels=8,
        pyramid=STRIDED,
        bottleneck=EmaVectorQuantizerConfig(codes=16),
    )
    model = config.build()
    image = images(size=32)
    result = model(image, rng())
    arrays = model.code_arrays(image)
    assert tuple(arrays) == config.names
    assert [tuple(each.shape[1:]) for each in arrays.values()] == list(config.grids)
    assert config.grids[-1] == (8, 8)
    for latent, codes in zip(result.latents, arrays.values(), strict=True):
        assert torch.equal(latent.codes, codes)
    whole = model.decode(tuple(arrays.values()))
    assert torch.allclose(whole, result.output.clamp(-1, 1), atol=1e-5)
    coarse = model.decode(tuple(arrays.values())[:1])
    assert coarse.shape == image.shape
    assert not torch.allclose(coarse, whole)
    (result.output.square().mean() + sum(each.loss for each in result.latents)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_published_hierarchy_has_32_and_64_codes_a_side():
    assert VQVAE2Config().grids == ((32, 32), (64, 64))
    assert VQVAE2Config(levels=3).grids == ((16, 16), (32, 32), (64, 64))


def test_a_finer_level_knows_the_coarser_codes():
    torch.manual_seed(0)
    model = VQVAE2Config(
        image_size=16, channels=8, pyramid=STRIDED, bottleneck=EmaVectorQuantizerConfig(codes=16)
    ).build()
    top, bottom = model.levels
    features = torch.zeros(1, 16, 4, 4)
    known = torch.randn(1, 8, 2, 2, generator=rng())
    assert not torch.allclose(bottom.hidden(features, known), bottom.hidden(features, -known))
    assert top.hidden(torch.zeros(1, 16, 2, 2), None).shape == (1, 8, 2, 2)


MODELS = [
    DVAEConfig(image_size=16, vocab=8, width=16, groups=2, patch=2, initial_width=8),
    AutoencoderConfig(image_size=16, channels=4, pyramid=RESNET, bottleneck=Identity()),
    AutoencoderConfig(image_size=16, channels=4, pyramid=PATCHED, bottleneck=Identity()),
    AutoencoderConfig(image_size=16, channels=4, pyramid=STRIDED, bottleneck=Identity()),
    VQVAE2Config(
        image_size=16, channels=8, pyramid=STRIDED, bottleneck=EmaVectorQuantizerConfig(codes=16)
    ),
]
LAST = ["decoder.blocks.output.conv.w", *["decoder.out.weight"] * 4]


@pytest.mark.parametrize(("config", "last"), list(zip(MODELS, LAST, strict=True)))
def test_the_last_weights_gradient_is_found_without_reading_the_weight(config, last):
    torch.manual_seed(0)
    model = config.build()
    result = model(images(), rng())
    value = (result.output * torch.rand(result.output.shape, generator=rng(1))).square().sum()
    weight = dict(model.named_parameters())[last]
    wanted, at_output = torch.autograd.grad(value, [weight, result.output])
    found = model.last_gradient(result.features, at_output)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.kind)
def test_blocks_computed_again_give_the_same_gradients(config):
    def gradients(*, again):
        torch.manual_seed(0)
        model = config.build()
        if again:
            assert enable_activation_checkpointing(model) > 0
        result = model(images(), rng())
        result.output.square().mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for first, second in zip(gradients(again=False), gradients(again=True), strict=True):
        assert torch.allclose(first, second, atol=1e-6)


@pytest.mark.parametrize("config", MODELS, ids=lambda config: config.kind)
@torch.no_grad()
def test_an_autoencoder_works_in_bf16_cast_and_autocast(config):
    torch.manual_seed(0)
    model = config.build()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images(), rng()).output.dtype == torch.float32
    cast = model.bfloat16()
    assert cast(images(), rng()).output.isfinite().all()
    assert cast.reconstruct(images()).isfinite().all()
    assert TypeAdapter(ModelConfig).validate_python(config.model_dump()) == config


def test_gaussian_latents_have_closed_form_divergences_and_moments():
    mean, log_variance = torch.tensor(1.5), torch.tensor(-0.7)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * log_variance).exp()),
        torch.distributions.Normal(0.0, 1.0),
    )
    assert float(kl_to_normal(mean, log_variance)) == pytest.approx(float(wanted), rel=1e-6)
    h = torch.stack([mean, log_variance]).view(1, 2, 1, 1).expand(1, 2, 300, 300)
    latent = Gaussian().build(1)(h, rng())
    assert float(latent.loss) == pytest.approx(float(wanted), rel=1e-5)
    assert float(latent.rate) == pytest.approx(float(wanted), rel=1e-5)
    deviation = math.exp(-0.35)
    assert float(latent.value.mean()) == pytest.approx(1.5, abs=3 * deviation / 300)
    assert float(latent.value.std()) == pytest.approx(deviation, rel=0.01)


def test_the_divergence_does_not_depend_on_batch_or_picture_size():
    h = torch.randn(1, 8, 4, 4, generator=rng())
    bottleneck = Gaussian().build(4)
    alone = float(bottleneck(h, rng()).loss)
    for many in (h.expand(5, -1, -1, -1), h.repeat(1, 1, 3, 2)):
        assert float(bottleneck(many, rng()).loss) == pytest.approx(alone, rel=1e-6)


def test_free_bits_cost_nothing_and_are_not_pushed_further():
    bottleneck = Gaussian(free_bits=1.0).build(2)
    # the first channel carries far less than a bit, the second far more
    h = torch.tensor([0.1, 3.0, 0.0, 0.0]).view(1, 4, 1, 1).requires_grad_()
    latent = bottleneck(h, rng())
    assert latent.loss.item() == pytest.approx(math.log(2) + 4.5, rel=1e-6)
    assert latent.rate.item() == pytest.approx(0.005 + 4.5, rel=1e-6)
    latent.loss.backward()
    assert h.grad[0, 0, 0, 0] == 0
    assert h.grad[0, 1, 0, 0] == 3


def test_a_gaussian_is_encoded_as_its_mean_or_as_a_sample():
    torch.manual_seed(0)
    model = AutoencoderConfig(
        image_size=16, channels=4, pyramid=STRIDED, bottleneck=Gaussian()
    ).build()
    image = images()
    assert torch.equal(model.encode(image), model.encode(image))
    assert torch.equal(model.encode(image, rng(1)), model.encode(image, rng(1)))
    assert not torch.equal(model.encode(image, rng(1)), model.encode(image))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match="not a multiple of the pyramid's stride 4"):
        AutoencoderConfig(image_size=18, channels=4, pyramid=STRIDED, bottleneck=Identity())
    with pytest.raises(ValidationError, match="not a multiple of groups"):
        ResnetPyramid(width=12, groups=8)
    with pytest.raises(ValidationError, match="top level's stride"):
        VQVAE2Config(image_size=36)
