"""The two diffusion networks and their loss."""

import pytest
import torch
from pydantic import ValidationError

from mezzotint.common.errors import UserError
from models.diffusion.condition import Condition
from models.diffusion.degradation import BlurAugmentation
from models.diffusion.guidance import with_guidance, without_text
from models.diffusion.losses import denoising_loss
from models.diffusion.process import ProcessConfig, denoiser
from models.diffusion.super_resolution import SuperResolutionConfig
from models.diffusion.text_diffusion import TextDiffusionConfig
from models.diffusion.unet.image_embedding import ImageEmbeddingConfig
from models.diffusion.weighting import SnrClamped

BASE = TextDiffusionConfig(
    image_size=16, patch=4, width=32, layers=4, heads=2, text_vocab=20, text_length=5
)
UPSAMPLER = SuperResolutionConfig(low_size=16, image_size=32, channels=(8, 16), blocks=1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=2, side=16, seed=0):
    return torch.rand(count, 3, side, side, generator=rng(seed)) * 2 - 1


def woken(config, seed=0):
    """A network whose zero-started layers hold random weights, as after training."""
    torch.manual_seed(seed)
    model = config.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng(seed)) * 0.1)
    return model


TEXT = torch.tensor([[3, 4, 5, 0, 0], [7, 8, 0, 0, 0]])
TIMES = torch.tensor([0.2, 0.7])


@pytest.mark.parametrize("tokens", [0, 2])
def test_an_embedding_acts_beside_the_caption_unless_it_is_dropped(tokens):
    config = BASE.model_copy(update={"image_embedding": ImageEmbeddingConfig(dim=6, tokens=tokens)})
    assert config.conditioning == {"text", "clip_image"}
    network = woken(config)
    one, other = torch.randn(2, 2, 6, generator=rng(3))

    def out(embedding, null=None):
        cond = Condition(text=TEXT, image_embedding=embedding, null_embedding=null)
        return network(images(), TIMES, cond)

    dropped = torch.tensor([True, False])
    first, second = out(one, dropped), out(other, dropped)
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1])
    assert torch.allclose(first[1], out(one)[1], atol=1e-6)
    assert not torch.allclose(first[0], out(one)[0])


def test_a_new_base_predicts_grey_and_a_new_upsampler_the_enlarged_input():
    assert float(BASE.build()(images(), TIMES, Condition(text=TEXT)).detach().abs().max()) == 0
    low = images()
    got = UPSAMPLER.build()(
        images(side=32), TIMES, Condition(low_res=low, noise_level=torch.zeros(2))
    )
    wanted = torch.nn.functional.interpolate(low, scale_factor=2, mode="bilinear")
    assert torch.equal(got, wanted)


def test_the_base_depends_on_image_time_and_caption():
    model = woken(BASE)
    x = images()
    plain = model(x, TIMES, Condition(text=TEXT))
    assert plain.shape == x.shape
    assert not torch.allclose(plain, model(x * 0.5, TIMES, Condition(text=TEXT)))
    assert not torch.allclose(plain, model(x, TIMES + 0.1, Condition(text=TEXT)))
    assert not torch.allclose(plain, model(x, TIMES, Condition(text=TEXT).without_text))


def test_every_parameter_of_both_networks_gets_a_gradient():
    level = torch.tensor([0.1, 0.3])
    for model, x, condition in (
        (woken(BASE), images(), Condition(text=TEXT)),
        (woken(UPSAMPLER), images(side=32), Condition(low_res=images(), noise_level=level)),
    ):
        model(x, TIMES, condition).square().sum().backward()
        still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert still == []


def test_the_upsampler_depends_on_its_input_and_the_level():
    model = woken(UPSAMPLER)
    x, low, level = images(side=32), images(seed=1), torch.tensor([0.1, 0.3])
    plain = model(x, TIMES, Condition(low_res=low, noise_level=level))
    assert not torch.allclose(
        plain, model(x, TIMES, Condition(low_res=low, noise_level=level + 0.2))
    )
    assert not torch.allclose(
        plain, model(x, TIMES, Condition(low_res=low * 0.9, noise_level=level))
    )


def test_the_upsampler_takes_crops_in_training_and_whole_images_later():
    model = woken(UPSAMPLER)
    level = torch.zeros(2)
    crop = model(images(side=16), TIMES, Condition(low_res=images(side=8), noise_level=level))
    whole = model(images(side=64), TIMES, Condition(low_res=images(side=32), noise_level=level))
    assert crop.shape == (2, 3, 16, 16)
    assert whole.shape == (2, 3, 64, 64)


def test_wrong_conditions_and_sizes_are_refused():
    with pytest.raises(UserError, match="captions"):
        BASE.build()(images(), TIMES, Condition())
    with pytest.raises(UserError, match="low-resolution"):
        UPSAMPLER.build()(images(side=32), TIMES, Condition(low_res=images()))
    with pytest.raises(UserError, match="multiples of 4"):
        UPSAMPLER.build()(
            images(side=18), TIMES, Condition(low_res=images(side=9), noise_level=torch.zeros(2))
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BASE.__class__(**{**BASE.model_dump(), "patch": 5}), "multiple of patch"),
        (lambda: BASE.__class__(**{**BASE.model_dump(), "heads": 3}), "multiple of heads"),
        (lambda: SuperResolutionConfig(low_size=32, image_size=48), "multiple of low_size"),
        (lambda: SuperResolutionConfig(low_size=1, image_size=2), "2\\^len"),
        (lambda: SuperResolutionConfig(low_size=8, image_size=16, channels=(9,)), "multiples of 8"),
        (
            lambda: SuperResolutionConfig(
                low_size=8, image_size=16, process=ProcessConfig(prediction_type="v")
            ),
            "prediction_type must be x0",
        ),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ValidationError, match=message):
        make()


def test_guidance_at_one_returns_the_conditional_branch_of_a_network_bit_for_bit():
    plain = denoiser(woken(BASE))
    x, condition = images(), Condition(text=TEXT)
    wanted = plain(x, TIMES, condition)
    got = with_guidance(plain, without_text(plain), 1.0)(x, TIMES, condition)
    assert torch.equal(got.x0, wanted.x0)
    empty = with_guidance(plain, without_text(plain), 0.0)(x, TIMES, condition)
    assert torch.equal(empty.x0, plain(x, TIMES, condition.without_text).x0)


@pytest.mark.parametrize("prediction_type", ["x0", "noise", "v"])
def test_the_loss_is_the_weighted_error_of_x0_whatever_is_predicted(prediction_type):
    process = ProcessConfig(prediction_type=prediction_type).build()
    x0 = images().double()
    noise = torch.randn(x0.shape, generator=rng(1), dtype=torch.float64)
    here = process.schedule.at(TIMES.double()).broadcast_to(x0)
    truth = {"x0": x0, "noise": noise, "v": here.alpha * noise - here.sigma * x0}[prediction_type]

    def perfect(x, t, condition):
        return truth

    weight = SnrClamped(low=0.05, high=5.0)
    args = (process, x0, Condition(), TIMES.double(), noise, weight)
    assert float(denoising_loss(perfect, *args).value.max()) < 1e-10

    shift = {"x0": 0.1, "noise": 0.1 * here.alpha / here.sigma, "v": 0.1 / here.sigma}[
        prediction_type
    ]
    loss = denoising_loss(lambda x, t, condition: truth + shift, *args)
    assert loss.metrics["x0_mse"].tolist() == pytest.approx([0.01, 0.01], rel=1e-4)
    snr = process.schedule.at(TIMES.double()).snr.clamp(0.05, 5.0)
    assert loss.value.tolist() == pytest.approx((0.01 * snr).tolist(), rel=1e-4)


@pytest.mark.parametrize("config", [BASE, UPSAMPLER])
@torch.no_grad()
def test_networks_run_in_bf16_and_under_autocast_and_answer_in_fp32(config):
    model = woken(config)
    x = images(side=32 if config is UPSAMPLER else 16)
    condition = Condition(text=TEXT, low_res=images(), noise_level=torch.tensor([0.1, 0.2]))
    exact = model(x, TIMES, condition)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(x, TIMES, condition)
    whole = model.bfloat16()(x, TIMES, condition)
    for got in (cast, whole):
        assert got.dtype == torch.float32
        assert float((got - exact).abs().mean() / exact.abs().mean()) < 0.1


def test_the_first_half_of_the_blocks_feeds_the_second():
    for layers, skips in ((1, 0), (4, 2), (5, 2), (6, 3)):
        model = BASE.model_copy(update={"layers": layers}).build()
        assert len(model.skips) == skips
        model(images(), TIMES, Condition(text=TEXT))


def test_a_blur_augmented_upsampler_can_be_built():
    config = UPSAMPLER.model_copy(update={"augmentation": BlurAugmentation()})
    levels = config.build().augmentation.levels(5, rng())
    assert levels.shape == (5,)
