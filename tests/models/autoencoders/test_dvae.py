"""The dVAE: DALL-E's network exactly, its bottleneck and its losses."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from models.autoencoders.bottleneck import GumbelBottleneck, kl_to_uniform
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.losses import (
    EPSILON,
    l1_l2,
    logit_laplace,
    logit_laplace_density,
    map_pixels,
    reconstruction,
    unmap_pixels,
)

TINY = DVAEConfig(image_size=32, vocab=32, width=16, groups=2, patch=2, initial_width=16)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_default_network_has_the_published_parameter_counts():
    with torch.device("meta"):
        model = DVAEConfig().build()
    assert parameters(model.encoder) == 53_786_240
    assert parameters(model.decoder) == 43_829_766


def test_parameters_carry_the_names_of_the_released_networks():
    with torch.device("meta"):
        model = DVAEConfig().build()
    blocks = {
        f"blocks.group_{g}.block_{b}.res_path.conv_{c}.{p}"
        for g in range(1, 5)
        for b in range(1, 3)
        for c in range(1, 5)
        for p in "wb"
    }
    ends = {f"blocks.{name}.{p}" for name in ("input", "output.conv") for p in "wb"}

    def skips(groups):
        return {f"blocks.group_{g}.block_1.id_path.{p}" for g in groups for p in "wb"}

    # the encoder's first group keeps its width; the decoder's groups all change theirs
    assert set(model.encoder.state_dict()) == blocks | ends | skips((2, 3, 4))
    assert set(model.decoder.state_dict()) == blocks | ends | skips((1, 2, 3, 4))


def reference(state, x, *, sizes, resample):
    """The published networks written out as plain functions over a state dict."""

    def conv(name, x):
        weight = state[f"blocks.{name}.w"]
        return F.conv2d(x, weight, state[f"blocks.{name}.b"], padding=weight.shape[-1] // 2)

    x = conv("input", x)
    for group in range(1, 5):
        for block in range(1, 3):
            name = f"group_{group}.block_{block}"
            branch = x
            for index, size in enumerate(sizes, start=1):
                assert state[f"blocks.{name}.res_path.conv_{index}.w"].shape[-1] == size
                branch = conv(f"{name}.res_path.conv_{index}", F.relu(branch))
            has_skip = f"blocks.{name}.id_path.w" in state
            x = (conv(f"{name}.id_path", x) if has_skip else x) + branch / 64
        if group < 4:
            x = resample(x)
    return conv("output.conv", F.relu(x))


def test_the_network_computes_what_the_published_one_computes():
    torch.manual_seed(0)
    model = DVAEConfig(image_size=16, vocab=24, width=8, initial_width=4).build()
    image = torch.rand(2, 3, 16, 16, generator=rng())
    encoded = model.encoder(image)
    wanted = reference(
        model.encoder.state_dict(), image, sizes=(3, 3, 3, 1), resample=lambda x: F.max_pool2d(x, 2)
    )
    assert encoded.shape == (2, 24, 2, 2)
    assert torch.allclose(encoded, wanted, atol=1e-5)
    codes = torch.rand(2, 24, 2, 2, generator=rng(1)).softmax(1)
    wanted = reference(
        model.decoder.state_dict(),
        codes,
        sizes=(1, 3, 3, 3),
        resample=lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    )
    assert torch.allclose(model.decoder(codes), wanted, atol=1e-5)


@torch.no_grad()
def test_shapes_from_image_to_codes_and_back():
    model = TINY.build()
    image = torch.rand(3, 3, 32, 32, generator=rng()) * 2 - 1
    output, (latent,), _ = model(image, rng())
    assert output.shape == (3, 6, 32, 32)
    assert latent.codes.shape == (3, *model.grid) == (3, 8, 8)
    assert int(latent.usage.sum()) == 3 * 64
    codes = model.tokens(image)
    assert torch.equal(codes, latent.codes)
    decoded = model.decode_tokens(codes)
    assert decoded.shape == image.shape
    assert float(decoded.detach().abs().max()) <= 1


@torch.no_grad()
def test_the_kl_does_not_depend_on_the_batch_size():
    torch.manual_seed(0)
    model = TINY.build()
    image = torch.rand(1, 3, 32, 32, generator=rng()) * 2 - 1
    values = [
        float(model(image.expand(count, -1, -1, -1), rng()).latent.loss) for count in (1, 4, 16)
    ]
    assert values[1:] == pytest.approx([values[0]] * 2, rel=1e-6)


def test_the_kl_of_uniform_logits_is_zero_and_of_one_code_ln_k():
    assert float(kl_to_uniform(torch.full((2, 8192, 2, 2), 3.0)).abs().max()) < 1e-5
    one = torch.zeros(1, 8192, 1, 1)
    one[0, 5] = 1e4
    assert float(kl_to_uniform(one)) == pytest.approx(math.log(8192), abs=1e-5)


def test_a_low_temperature_gives_the_argmax_and_a_high_one_the_mean_code():
    logits = torch.randn(2, 16, 4, 4, generator=rng())
    bottleneck = GumbelBottleneck()
    bottleneck.temperature = 1e-3
    cold = bottleneck(logits, rng(1)).value
    assert float(cold.max(1).values.mean()) > 0.99
    bottleneck.temperature = 1e4
    hot = bottleneck(logits, rng(1)).value
    assert torch.allclose(hot, torch.full_like(hot, 1 / 16), atol=1e-3)


def test_cold_samples_follow_the_categorical_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1).expand(1, 3, 200, 200)
    bottleneck = GumbelBottleneck(temperature=1e-4)
    share = bottleneck(logits, rng()).value.mean(dim=(0, 2, 3))
    wanted = torch.tensor([0.0, 1.0, 2.0]).softmax(0)
    assert torch.allclose(share, wanted, atol=3 * (0.25 / 40_000) ** 0.5)


def test_the_bottleneck_repeats_under_the_same_generator_and_passes_gradients():
    logits = torch.randn(1, 8, 2, 2, generator=rng(), requires_grad=True)
    bottleneck = GumbelBottleneck()
    first, second = bottleneck(logits, rng(3)).value, bottleneck(logits, rng(3)).value
    assert torch.equal(first, second)
    first.square().sum().backward()
    assert float(logits.grad.abs().min()) > 0


@pytest.mark.parametrize(("mean", "log_scale"), [(0.0, 0.0), (1.5, -1.0), (-2.0, 0.5)])
def test_the_logit_laplace_density_integrates_to_one(mean, log_scale):
    # substituting x = sigmoid(z) keeps the integrand smooth at both ends
    z = torch.linspace(-60, 60, 2_000_001, dtype=torch.float64) + mean
    x = torch.sigmoid(z)
    inside = (x > 0) & (x < 1)
    z, x = z[inside], x[inside]
    jacobian = x * torch.sigmoid(-z)
    density = logit_laplace_density(
        x, torch.tensor(mean).double(), torch.tensor(log_scale).double()
    ).exp()
    assert float(torch.trapezoid(density * jacobian, z)) == pytest.approx(1.0, abs=1e-6)


def test_the_loss_is_the_mean_negative_log_density_of_mapped_pixels():
    output = torch.randn(2, 6, 4, 4, generator=rng())
    image = torch.rand(2, 3, 4, 4, generator=rng(1)) * 2 - 1
    mapped = (1 - 2 * EPSILON) * (image + 1) / 2 + EPSILON
    mean, scale = output[:, :3], output[:, 3:].exp()
    density = torch.exp(-(torch.logit(mapped) - mean).abs() / scale) / (
        2 * scale * mapped * (1 - mapped)
    )
    assert float(logit_laplace(output, image)) == pytest.approx(
        float(-density.log().mean()), rel=1e-5
    )


def test_mapping_pixels_is_undone_and_stays_off_the_ends():
    image = torch.linspace(-1, 1, 101)
    mapped = map_pixels(image)
    assert float(mapped.min()) == pytest.approx(EPSILON)
    assert float(mapped.max()) == pytest.approx(1 - EPSILON)
    assert torch.allclose(unmap_pixels(mapped), image, atol=1e-6)


def test_l1_l2_is_zero_for_the_image_itself():
    image = torch.rand(1, 3, 4, 4, generator=rng()) * 2 - 1
    output = torch.cat([torch.logit(map_pixels(image)), torch.zeros_like(image)], dim=1)
    assert torch.allclose(reconstruction(output), image, atol=1e-5)
    assert float(l1_l2(output, image)) < 1e-5
    shifted = torch.cat([torch.logit(map_pixels(image * 0)), torch.zeros_like(image)], dim=1)
    wanted = image.abs().mean() + image.square().mean()
    assert float(l1_l2(shifted, image)) == pytest.approx(float(wanted), rel=1e-5)


def test_an_image_size_that_is_no_multiple_of_the_stride_is_refused():
    with pytest.raises(ValidationError, match="not a multiple of patch"):
        DVAEConfig(image_size=30, groups=3, patch=2)
