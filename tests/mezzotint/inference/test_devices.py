"""Sampling and encoding keep every tensor on the device they are given.

With meta as the default device, a tensor made without a device has no values and cannot be combined
with one on the CPU: an operation that mixes them fails here, without a GPU.
"""

import pytest
import torch
from tiny_run import CAPTIONS, SYSTEMS, write_run

from data_pipeline.config import DataConfig, ImageConfig, Selection
from evaluation.metrics.likelihood import Integration, bits_per_dimension
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.config import DiffusionSystem
from mezzotint.inference.encode import encode_set
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.load import load_generator
from mezzotint.inference.model_lookup import system_of
from models.diffusion.solvers.config import SolverConfig

CPU = torch.device("cpu")
PROMPTS = tuple(map(Prompt, CAPTIONS))
UNION = SolverConfig.__origin__  # of Annotated[Union, discriminator]
SOLVERS = [each.model_fields["kind"].default for each in UNION.__args__]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pipeline's run of untrained networks, written with the usual default device."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def meta(run):
    """Meta as the default device."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def generator(run, model="base", **settings):
    tree = {"model": str(run / model / "model"), "sampling": {"steps": 3, "guidance": 2.0}}
    return load_generator(DiffusionSystem.model_validate(tree | settings), device=CPU)


def generated(system, prompts=PROMPTS, **settings):
    result = system.generate(GenerationRequest(prompts, number=2, batch_size=3, **settings))
    assert result.images.device == CPU
    assert len(result.images.flatten(2).float().std(dim=2)) == len(prompts)
    return result


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_generates_ranks_and_reconstructs_on_the_given_device(run, name):
    system = load_generator(system_of(run, name), device=CPU)
    result = generated(system)
    back = system.reconstruct(result.images[:, 0])
    assert back is None or back.device == CPU
    assert result.scores is None or result.top(1).scores.device == CPU
    if name == "dalle":
        prefix = system.prefix_codes(result.images[0, 0], 2)
        assert torch.equal(generated(system, prefix_codes=prefix).codes[1, 0, :2], prefix)


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_solver_samples_on_the_given_device(run, kind):
    system = generator(run, sampling={"steps": 3, "guidance": 2.0, "solver": {"kind": kind}})
    if kind == "analytic_dpm":
        images = torch.rand((4, 3, 8, 8), generator=torch.Generator("cpu"), device=CPU)
        prompts = [Prompt("man cook")] * 4
        system = system.with_analytic_moments(images, prompts, torch.Generator("cpu"))
    steps = []
    system.generate(GenerationRequest(PROMPTS), callback=steps.append)
    assert steps[-1].x.device == CPU


@pytest.mark.parametrize("thresholding", ["none", "static", "dynamic"])
@pytest.mark.parametrize("times", ["uniform", "quadratic", "karras", "log_snr"])
def test_times_thresholding_and_both_guidances_stay_on_the_given_device(run, times, thresholding):
    settings = {"thresholding": {"kind": thresholding}, "times": {"kind": times}, "rescale": 0.5}
    sampling = {"steps": 3, "guidance": 2.0, "classifier_scale": 1.0, **settings}
    classifier = str(run / "classifier" / "model")
    guided = generator(run, "classes", classifier=classifier, sampling=sampling)
    generated(guided, (Prompt(label=1), Prompt(label=2)))
    negative = generator(run, negative="man", sampling={"steps": 3, "guidance": 2.0, **settings})
    generated(negative, noise=torch.zeros((2, 3, 8, 8), device=CPU))


def test_inversion_and_likelihood_stay_on_the_given_device(run):
    system = generator(run)
    images = torch.zeros((2, 3, 8, 8), device=CPU)
    inversion = system.invert(images, PROMPTS)
    assert inversion.noise.device == inversion.reconstruction.device == CPU
    levels = torch.zeros((2, 8, 8, 3), dtype=torch.uint8, device=CPU)
    bits = bits_per_dimension(system, levels, PROMPTS, Integration(steps=2))
    assert bits.each.device == CPU


@pytest.mark.parametrize(
    ("model", "latents"), [("dvae", False), ("vqvae2", False), ("kl", True), ("kl", False)]
)
def test_a_set_is_encoded_on_the_given_device(run, tmp_path, model, latents):
    select = Selection(split="composition", part="test", where={"base": ("judge",)})
    data = DataConfig(url="data/emoji", select=(select,), image=ImageConfig(size=16))
    where = str(run / model / "model")
    manifest = encode_set(data, where, str(tmp_path / "out"), latents=latents, device=CPU)
    assert manifest is not None
    assert manifest.encoder is not None


def test_a_clip_embeds_on_the_given_device(run):
    clip = ClipEmbedder.load(str(run / "clip" / "model"), CPU)
    images = torch.zeros((2, 16, 16, 3), dtype=torch.uint8, device=CPU)
    assert clip.images(images).device == clip.texts(CAPTIONS).device == CPU
