"""No operation mixes devices: with meta as torch's default, everything stays on the CPU."""

import pytest
import torch
from pydantic import TypeAdapter
from torch.nn import functional as F

from models.config import ModelConfig
from models.diffusion.classifier import class_log_probability
from models.diffusion.condition import Condition
from models.diffusion.guidance import without_class, without_text
from models.diffusion.inversion import ddim_round_trip, noise_statistics
from models.diffusion.likelihood import Hutchinson, bits_per_value, dequantized, log_likelihood
from models.diffusion.losses import denoising_loss, hybrid_loss, simple_loss
from models.diffusion.process import denoiser
from models.diffusion.sampling import DiffusionSampling
from models.diffusion.schedules.timesteps import (
    ImportanceConfig,
    LogNormal,
    Stratified,
    Uniform,
)
from models.diffusion.solvers.analytic_dpm import noise_moments
from models.diffusion.solvers.grids import noisy_end
from models.diffusion.weighting import SnrClamped

CPU = torch.device("cpu")
PARTS = {
    **{"kind": "unet", "image_size": 8, "channels": 16, "multipliers": [1, 2], "depth": 1},
    **{"attention": [4], "head_width": 8, "groups": 8},
}
TEXT = {"vocab": 20, "length": 5, "width": 16, "layers": 1, "heads": 2}
LEARNED = {"schedule": {"kind": "discrete"}, "prediction_type": "noise", "variance": "learned"}
NETWORKS = {
    "unet": {**PARTS, "classes": 3, "null_class": True, "text": TEXT, "process": LEARNED},
    "unet, features": {
        **PARTS,
        **{"features": {"width": 16}, "transformer": {}, "resampling": "convolution"},
        "process": {"schedule": {"kind": "edm"}, "prediction_type": "edm"},
    },
    "unet, upsampler": {**PARTS, "low_resolution": {"size": 4, "condition_on_noise_level": True}},
    "dit": {
        **{"kind": "dit", "image_size": 8, "patch": 2, "width": 32, "layers": 2, "heads": 2},
        **{"classes": 3, "process": {"prediction_type": "v"}},
    },
    "text_diffusion": {
        **{"kind": "text_diffusion", "image_size": 8, "patch": 4, "width": 32, "layers": 2},
        **{"heads": 2, "text_vocab": 20, "text_length": 5},
        "process": {"schedule": {"kind": "linear"}},
    },
    "super_resolution": {
        **{"kind": "super_resolution", "low_size": 4, "image_size": 8, "channels": [8, 8]},
        "process": {"schedule": {"kind": "vp"}},
    },
}
CLASSIFIER = {**PARTS, "kind": "noisy_classifier", "classes": 3, "process": {}}
SOLVERS = [
    *("ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpm_solver_2", "dpm_solver_3"),
    *("dpm_solver_pp_2m", "dpm_solver_pp_2s", "dpm_solver_pp_3m", "dpm_solver_pp_sde", "unipc"),
    "predictor_corrector",
]


@pytest.fixture
def build():
    """Builds networks on the CPU, then makes meta the default device."""

    def made(settings):
        with torch.device("cpu"):
            network = TypeAdapter(ModelConfig).validate_python(settings).build()
        torch.set_default_device("meta")
        return network

    yield made
    torch.set_default_device(None)


def rng(seed=0):
    return torch.Generator(CPU).manual_seed(seed)


def images(count=2, side=8, seed=0):
    return torch.rand(count, 3, side, side, generator=rng(seed), device=CPU) * 2 - 1


def condition():
    return Condition(
        text=torch.ones(2, 5, dtype=torch.int64, device=CPU),
        label=torch.tensor([0, 2], device=CPU),
        low_res=images(side=4, seed=1),
        noise_level=torch.tensor([0.1, 0.2], device=CPU),
        features=torch.randn(2, 5, 16, generator=rng(), device=CPU),
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_training_and_sampling_stay_on_the_device_of_their_inputs(name, build):
    network, x0, noise = build(NETWORKS[name]), images(), images(seed=2)
    process, given = network.process, condition()
    if "low_resolution" in network.config.conditioning:
        level = network.augmentation.levels(2, rng())
        low = network.augmentation(images(side=4), level, rng())
        given = Condition(low_res=low, noise_level=level)
    t = Stratified().build(process.schedule).sample(2, rng()).t
    args = (network, process, x0, given, t, noise)
    losses = [denoising_loss(*args, SnrClamped()), simple_loss(*args)]
    if process.config.variance == "learned":
        losses.append(hybrid_loss(*args))
    for loss in losses:
        loss.value.mean().backward()
        assert loss.value.device == CPU
        assert all(values.device == CPU for values in loss.metrics.values())
    assert all(weight.grad is None or weight.grad.device == CPU for weight in network.parameters())
    conditional = denoiser(network)
    unconditional = without_class(without_text(conditional), 3)
    sampling = DiffusionSampling(steps=3, guidance=1.0 if given.label is None else 2.0)
    with torch.no_grad():
        run = sampling.sampler_run(conditional, unconditional, process.schedule)
        assert run.solve(noise, given, rng()).device == CPU


@pytest.mark.parametrize("kind", SOLVERS)
def test_every_solver_stays_on_the_device_of_its_noise(kind, build):
    network, noise = build(NETWORKS["unet"]), images(seed=2)
    for change in ({"times": {"kind": "karras"}}, {"times": {"kind": "trailing"}}):
        settings = {
            **{"solver": {"kind": kind}, "steps": 4, "rescale": 0.7, "guidance": 2.0},
            **{"interval": [0.2, 0.8], "thresholding": {"kind": "dynamic"}, **change},
        }
        if kind in ("euler", "heun"):
            settings["solver"]["churn"] = {"amount": 2.0}
        sampling = DiffusionSampling.model_validate(settings)
        plain = denoiser(network)
        run = sampling.sampler_run(plain, without_class(plain, 3), network.process.schedule)
        with torch.no_grad():
            assert run.solve(noise, condition(), rng()).device == CPU


def test_a_classifier_trains_and_guides_on_the_device_of_its_inputs(build):
    classifier, x, label = build(CLASSIFIER), images(), torch.tensor([0, 2], device=CPU)
    t = LogNormal().build(classifier.process.schedule).sample(2, rng()).t
    F.cross_entropy(classifier(x, t), label).backward()
    assert classifier.stem.weight.grad.device == CPU
    network = build(NETWORKS["unet"])
    schedule = network.process.schedule
    wanted = class_log_probability(classifier, label, schedule)
    for kind in ("ddpm", "heun"):
        sampling = DiffusionSampling.model_validate(
            {"solver": {"kind": kind}, "steps": 2, "classifier_scale": 1.0}
        )
        plain = denoiser(network)
        with torch.no_grad():
            run = sampling.sampler_run(plain, plain, schedule, wanted)
            assert run.solve(x, condition(), rng()).device == CPU


def test_likelihood_inversion_and_moments_stay_on_the_device_of_their_images(build):
    network, x = build(NETWORKS["text_diffusion"]), images()
    schedule, given, plain = network.process.schedule, condition(), denoiser(network)
    times = DiffusionSampling(steps=2).time_grid.build(schedule, 2)
    assert noisy_end(schedule) == 0
    levels = torch.randint(256, (2, 3, 8, 8), generator=rng(), device=CPU)
    divergence = Hutchinson(x, rng())
    made = log_likelihood(
        plain, schedule, dequantized(levels, rng()), times.flip(0), given, divergence
    )
    assert bits_per_value(made.log_density, 192).device == CPU
    with torch.no_grad():
        trip = ddim_round_trip(plain, schedule, x, times, given)
        assert noise_statistics(trip.noise).mean.device == trip.reconstruction.device == CPU
        assert len(noise_moments(plain, schedule, x, times, given, rng())) == 2


def test_times_of_training_are_on_the_device_of_their_generator(build):
    schedule = build(NETWORKS["dit"]).process.schedule
    for config in (Uniform(), Uniform(steps=10), Stratified(), LogNormal(), ImportanceConfig()):
        sampled = config.build(schedule).sample(4, rng())
        assert sampled.t.device == sampled.weight.device == CPU
    sampler = ImportanceConfig(steps=4, history=1).build(schedule)
    sampler.update(torch.tensor([0.25, 1.0], device=CPU), torch.tensor([1.0, 2.0], device=CPU))
    assert sampler.sample(4, rng()).t.device == CPU
