"""Reconstruction and adversarial tasks: terms, weights and codebooks, without an engine."""

import pytest
import torch
from bare import Bare
from torch import nn
from torch.nn import functional as F

from data_pipeline.batch import Batch
from mezzotint.common.errors import UserError
from models.autoencoders.autoencoder import AutoencoderConfig
from models.autoencoders.bottleneck import Gaussian, Identity
from models.autoencoders.discriminator import PatchDiscriminatorConfig
from models.autoencoders.dvae import DVAEConfig
from models.autoencoders.hierarchical import VQVAE2Config
from models.autoencoders.perceptual import Perceptual, RandomNetwork
from models.autoencoders.quantizer import EmaVectorQuantizerConfig, VectorQuantizerConfig
from models.autoencoders.resnet import ResnetPyramid
from models.autoencoders.strided import StridedPyramid
from trainer.optimizers.schedules import Constant, Cosine
from trainer.recipe import load
from trainer.task import Step
from trainer.tasks.adversarial import AdversarialConfig, surrogate_loss
from trainer.tasks.perceptual import Lpips, OwnFeatures, RandomFeatures
from trainer.tasks.reconstruction import ReconstructionConfig

STRIDED = StridedPyramid(width=16, halvings=1, blocks=1, residual_width=8, patch=2)
RESNET = ResnetPyramid(width=8, multipliers=(1, 2), blocks=1, groups=4)
DISCRIMINATOR = PatchDiscriminatorConfig(width=8, layers=1)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=4):
    image = torch.rand(count, 3, 16, 16, generator=rng()) * 2 - 1
    return Batch(("",) * count, ("",) * count, image, None, {})


def autoencoder(bottleneck, pyramid=STRIDED):
    return AutoencoderConfig(image_size=16, channels=4, pyramid=pyramid, bottleneck=bottleneck)


def built(config, model):
    torch.manual_seed(0)
    task = config.build(model.build())
    return task, {name: Bare(part) for name, part in task.parts().items()}


def losses(task, engines, index, seed=0):
    return list(task.losses(engines, batch(), Step(index, rng(seed))))


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (autoencoder(Identity()), {"likelihood": "l2"}),
        (autoencoder(Gaussian()), {"likelihood": "l1", "kl": Constant(value=0.01)}),
        (autoencoder(VectorQuantizerConfig(codes=8)), {"likelihood": "l1_l2"}),
        (autoencoder(EmaVectorQuantizerConfig(codes=8)), {"likelihood": "l1_l2"}),
        (
            VQVAE2Config(
                image_size=16,
                channels=8,
                pyramid=STRIDED,
                bottleneck=EmaVectorQuantizerConfig(codes=8),
            ),
            {"likelihood": "l1_l2"},
        ),
        (DVAEConfig(image_size=16, vocab=8, width=16, groups=2, patch=2, initial_width=8), {}),
    ],
    ids=["ae", "vae", "vq", "ema", "vqvae2", "dvae"],
)
def test_a_few_steps_lower_the_loss_of_every_autoencoder(model, settings):
    task, engines = built(ReconstructionConfig(kind="reconstruction", **settings), model)
    optimizer = torch.optim.Adam(engines["model"].module.parameters(), 3e-3)
    curve = []
    for index in range(25):
        (loss,) = losses(task, engines, index)
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        task.after_update(Step(index, rng(index)))
        curve.append(loss.metrics["reconstruction"].item())
    assert curve[-1] < 0.9 * curve[0]


def test_the_divergences_weight_follows_its_schedule():
    config = ReconstructionConfig(
        kind="reconstruction", likelihood="l2", kl=Cosine(start=0.0, end=2.0, steps=10)
    )
    task, engines = built(config, autoencoder(Gaussian()))
    (free,), (half,), (full,) = (losses(task, engines, index) for index in (0, 5, 10))
    divergence = full.metrics["kl"].item()
    assert free.value.item() == pytest.approx(free.metrics["reconstruction"].item(), rel=1e-5)
    assert half.value.item() - free.value.item() == pytest.approx(divergence, rel=1e-3)
    assert full.value.item() - free.value.item() == pytest.approx(2 * divergence, rel=1e-3)


def test_micro_batches_are_committed_once_and_together():
    config = ReconstructionConfig(kind="reconstruction", likelihood="l2")
    task, engines = built(config, autoencoder(EmaVectorQuantizerConfig(codes=8)))
    quantizer = engines["model"].module.bottleneck
    before = quantizer.codebook.clone()
    losses(task, engines, 0)
    losses(task, engines, 0)
    assert torch.equal(quantizer.codebook, before)
    task.after_update(Step(0, rng()))
    assert not torch.equal(quantizer.codebook, before)
    (loss,) = losses(task, engines, 1)
    # perplexity and use are those of the whole step before, both micro-batches together
    assert loss.metrics["codes_used"].item() >= 1
    task.after_update(Step(1, rng()))


def test_statistics_of_an_overflow_leave_the_codebook_alone():
    config = ReconstructionConfig(kind="reconstruction", likelihood="l2")
    task, engines = built(config, autoencoder(EmaVectorQuantizerConfig(codes=8)))
    model = engines["model"].module
    before = model.bottleneck.codebook.clone()
    nn.init.constant_(model.to_latent.bias, float("inf"))
    losses(task, engines, 0)
    task.after_update(Step(0, rng()))
    assert torch.equal(model.bottleneck.codebook, before)


def test_a_loss_with_a_given_gradient_has_its_value_too():
    output = torch.randn(3, generator=rng()).requires_grad_()
    wanted = torch.tensor([1.0, -2.0, 0.5])
    value = surrogate_loss(output, wanted, torch.tensor(7.0))
    assert value.item() == pytest.approx(7.0)
    assert torch.equal(torch.autograd.grad(value, output)[0], wanted)


@pytest.mark.parametrize("pyramid", [STRIDED, RESNET], ids=lambda config: config.kind)
def test_the_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_layer(pyramid):
    """And the generator's gradients are those of the loss written out with that weight."""
    config = AdversarialConfig(
        kind="adversarial",
        discriminator=DISCRIMINATOR,
        likelihood="l1",
        weight=0.8,
        perceptual=RandomFeatures(widths=(8,), weight=0.3),
        kl=Constant(value=1e-3),
    )
    task, engines = built(config, autoencoder(Gaussian(), pyramid))
    generator, discriminator = engines["model"].module, engines["discriminator"].module
    first, _ = losses(task, engines, 0)
    found = torch.autograd.grad(first.value, list(generator.parameters()))

    image = batch().images
    output, (latent,), _ = generator(image, rng())
    perceptual = Perceptual(RandomNetwork((8,), 0), None)
    distance = F.l1_loss(output, image) + 0.3 * perceptual(output, image)
    adversarial = -discriminator(output).mean()
    last = generator.decoder.out.weight
    pull, push = (
        torch.autograd.grad(each, last, retain_graph=True)[0].norm()
        for each in (distance, adversarial)
    )
    weight = 0.8 * pull / (push + 1e-4)
    assert first.metrics["adversarial_weight"].item() == pytest.approx(weight.item(), rel=1e-4)
    value = distance + weight.detach() * adversarial + 1e-3 * latent.loss
    assert first.value.item() == pytest.approx(value.item(), rel=1e-5)
    wanted = torch.autograd.grad(value, list(generator.parameters()))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def test_before_its_start_the_discriminator_neither_learns_nor_is_heard():
    config = AdversarialConfig(
        kind="adversarial", discriminator=DISCRIMINATOR, likelihood="l2", start_step=3, ramp_steps=4
    )
    task, engines = built(config, autoencoder(Identity()))
    generator, discriminator = losses(task, engines, 2)
    assert generator.value.item() == pytest.approx(generator.metrics["reconstruction"].item())
    assert discriminator.value.item() == 0
    assert "adversarial" not in generator.metrics
    generator, discriminator = losses(task, engines, 3)
    assert discriminator.value.item() > 0
    assert "adversarial" in generator.metrics
    assert [config.weight_at(index) for index in (2, 3, 4, 6, 99)] == pytest.approx(
        [0.0, 0.2, 0.4, 0.8, 0.8]
    )


@pytest.mark.parametrize("loss", ["hinge", "logistic"])
def test_the_generators_phase_gives_the_discriminator_no_gradient_and_its_own_does(loss):
    config = AdversarialConfig(
        kind="adversarial", discriminator=DISCRIMINATOR, likelihood="l2", loss=loss
    )
    task, engines = built(config, autoencoder(Identity()))
    steps = task.losses(engines, batch(), Step(0, rng()))
    next(steps).value.backward()
    weights = list(engines["discriminator"].module.parameters())
    assert all(weight.grad is None for weight in weights)
    gradients = [weight.grad.clone() for weight in engines["model"].module.parameters()]
    next(steps).value.backward()
    assert all(weight.grad is not None for weight in weights)
    for weight, before in zip(engines["model"].module.parameters(), gradients, strict=True):
        assert torch.equal(weight.grad, before)


def test_objectives_that_do_not_suit_the_model_are_refused():
    with pytest.raises(UserError, match="logit_laplace needs a dvae"):
        ReconstructionConfig(kind="reconstruction").build(autoencoder(Identity()).build())
    with pytest.raises(UserError, match="dvae, autoencoder or vqvae2"):
        ReconstructionConfig(kind="reconstruction").build(DISCRIMINATOR.build())


def test_perceptual_distances_are_zero_for_equal_pictures_and_read_local_weights(tmp_path):
    from models import store
    from models.autoencoders.perceptual import VGG_WIDTHS, Vgg

    torch.manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=rng()) * 2 - 1
    other = torch.rand(2, 3, 32, 32, generator=rng(1)) * 2 - 1
    vgg, linear, own = tmp_path / "vgg.pth", tmp_path / "lpips.pth", tmp_path / "model"
    torch.save({**Vgg().state_dict(), "classifier.0.weight": torch.zeros(2)}, vgg)
    weights = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(VGG_WIDTHS)}
    torch.save(weights, linear)
    model = DVAEConfig(image_size=32, vocab=8, width=16, groups=2, patch=2, initial_width=8)
    store.save(str(own), model, model.build().state_dict(), card="")
    for config in (
        RandomFeatures(),
        OwnFeatures(model=str(own)),
        Lpips(vgg=str(vgg), linear=str(linear)),
    ):
        distance = config.build()
        assert distance(image, image).item() == pytest.approx(0, abs=1e-6)
        moving = other.clone().requires_grad_()
        distance(moving, image).backward()
        assert moving.grad.abs().sum() > 0
        assert not any(weight.requires_grad for weight in distance.parameters())
    with pytest.raises(UserError, match="no such weight file"):
        Lpips(vgg=str(tmp_path / "none.pth")).build()
    with pytest.raises(UserError, match="is not VGG-16"):
        Lpips(vgg=str(linear)).build()
    with pytest.raises(UserError, match="not LPIPS"):
        Lpips(vgg=str(vgg), linear=str(vgg)).build()


def test_lpips_is_the_published_formula():
    from models.autoencoders.perceptual import VGG_WIDTHS, Vgg

    torch.manual_seed(0)
    network = Vgg()
    channels = tuple(torch.rand(width, 1, 1) for width in VGG_WIDTHS)
    image, other = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32) * 2 - 1
    wanted = torch.zeros(())
    scaled = [(x - network.shift) / network.scale for x in (image, other)]
    layers, positions = [], (0, 2, "pool", 5, 7, "pool", 10, 12, 14)
    for layer in (*positions, "pool", 17, 19, 21, "pool", 24, 26, 28):
        if layer == "pool":
            layers.append([*scaled])
            scaled = [F.max_pool2d(x, 2, 2) for x in scaled]
        else:
            scaled = [network.features[str(layer)](x).relu() for x in scaled]
    layers.append(scaled)
    for (a, b), weight in zip(layers, channels, strict=True):
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
        wanted = wanted + ((a - b) ** 2 * weight).sum(1).mean()
    found = Perceptual(network, channels)(image, other)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_dvae_recipe_has_the_papers_schedules_at_their_ends():
    recipe = load("recipes/dalle_dvae.yaml")
    divergence, temperature, rate = recipe.task.kl, recipe.task.temperature, recipe.optimizer.lr
    # the paper's weight belongs to a loss per value; a code stands for 192 of them
    assert divergence.at(0) == 0
    assert divergence.at(5000) * 192 == pytest.approx(6.6, rel=1e-6)
    assert divergence.at(10**6) == divergence.at(5000)
    assert [temperature.at(step) for step in (0, 75_000, 150_000)] == pytest.approx(
        [1.0, 0.53125, 0.0625]
    )
    assert rate.at(0, recipe.steps) == pytest.approx(1e-4)
    assert rate.at(1_200_000, recipe.steps) == pytest.approx(1.25e-6)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dalle_dvae", 53_786_240 + 43_829_766),
        ("imagenet_kl_f4", 55_312_063),
        ("imagenet_kl_f8", 83_653_863),
        ("imagenet_kl_f16", 69_610_963),
        ("imagenet_kl_f32", 103_880_131),
    ],
)
def test_recipes_of_published_first_stages_have_their_counts(name, count):
    recipe = load(f"recipes/{name}.yaml")
    with torch.device("meta"):
        model = recipe.task.build(recipe.model.build()).parts()["model"]
    assert sum(weight.numel() for weight in model.parameters()) == count


@pytest.mark.parametrize(("name", "stride"), [("f4", 4), ("f8", 8), ("f16", 16), ("f32", 32)])
def test_the_kl_weights_are_latent_diffusions_in_our_units(name, stride):
    recipe = load(f"recipes/imagenet_kl_{name}.yaml")
    assert recipe.task.kl.at(0) == pytest.approx(1e-6 / (3 * stride**2), rel=1e-5)
    assert recipe.model.pyramid.stride == stride
