"""Latent diffusion: systems of a first stage and a denoiser, image-to-image and inpainting."""

from dataclasses import replace
from functools import partial

import pytest
import saved_network
import torch

from mezzotint.api import System
from mezzotint.common.errors import UserError
from mezzotint.common.latent_scaling import LatentScaling
from mezzotint.inference.config import LatentSystem
from mezzotint.inference.diffusion import DiffusionGenerator
from mezzotint.inference.editing import ImageEdit, edited_run, start_of
from mezzotint.inference.generator import GenerationRequest, Prompt
from mezzotint.inference.images import from_bytes, to_bytes
from mezzotint.inference.load import load_generator
from mezzotint.inference.model_lookup import find_system
from models import store
from models.autoencoders.autoencoder import AutoencoderConfig
from models.diffusion.condition import Condition
from models.diffusion.process import denoiser
from models.diffusion.sampling import DiffusionSampling, LatentSampling
from models.diffusion.unet.network import UNetConfig
from models.first_stage import FirstStage

PYRAMID = {"kind": "resnet", "width": 4, "multipliers": [1, 2], "blocks": 1, "groups": 2}
SCALING = LatentScaling(mean=0.3, std=2.0, samples=10)
PROMPTS = (Prompt(label=1), Prompt(label=2))

saved = partial(saved_network.saved, spread=0.05)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def autoencoder(bottleneck):
    return AutoencoderConfig.model_validate(
        {"image_size": 16, "channels": 4, "pyramid": PYRAMID, "bottleneck": bottleneck}
    )


def unet(**settings):
    sizes = {"image_size": 8, "image_channels": 4, "channels": 8, "multipliers": (1,), "depth": 1}
    shape = {"groups": 4, "attention": (), "head_width": 4, "classes": 4, "null_class": True}
    return UNetConfig(**sizes | shape | settings)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """First stages and denoisers of their latents, untrained but not blank."""
    root = tmp_path_factory.mktemp("latent")
    kinds = {"kl": {"kind": "gaussian"}, "vq": {"kind": "vq", "codes": 8}}
    for name, bottleneck in kinds.items():
        stage = saved(root / name, autoencoder(bottleneck))
        found = FirstStage(model=stage, digest=store.describe(stage).digest, scaling=SCALING)
        saved(root / f"unet_{name}", unet(), first_stage=found)
    return root


def load(home, kind="kl", **settings):
    tree = {"model": str(home / f"unet_{kind}"), "sampling": {"steps": 4}} | settings
    system = load_generator(LatentSystem.model_validate(tree), precision="fp32")
    assert isinstance(system, DiffusionGenerator)
    return system


@pytest.fixture(scope="module")
def system(home):
    return load(home)


def picture(seed=3):
    return torch.randint(0, 256, (16, 16, 3), generator=rng(seed), dtype=torch.uint8)


def generate(system, **settings):
    return system.generate(GenerationRequest(PROMPTS, number=2, **settings)).images


def under(system, **settings):
    sampling = LatentSampling.model_validate({"steps": 4} | settings)
    return replace(system, config=system.config.model_copy(update={"sampling": sampling}))


def test_a_model_that_records_a_first_stage_is_a_latent_system(home):
    assert find_system(str(home / "unet_kl")) == LatentSystem(model=str(home / "unet_kl"))


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_latents_are_sampled_unscaled_and_decoded(home, kind):
    chosen = load(home, kind)
    noise = torch.randn((1, 4, 8, 8), generator=rng())
    prompt = GenerationRequest(PROMPTS[:1], noise=noise)
    run = chosen.config.sampling.sampler_run(
        denoiser(chosen.network), denoiser(chosen.network), chosen.schedule
    )
    with torch.no_grad():
        x = run.solve(noise, Condition(label=torch.tensor([1])), rng())
        stage = store.load(str(home / kind))
        expected = to_bytes(stage.decode(x * 2.0 + 0.3))
    assert torch.equal(chosen.generate(prompt).images[0], expected)
    assert float(x.abs().max()) > 1, "latents are not clamped"


def test_a_discrete_first_stage_quantises_what_is_decoded(home):
    space = load(home, "vq").space
    with torch.no_grad():
        x = torch.randn((1, 4, 8, 8), generator=rng())
        codes = space.first_stage.bottleneck.tokens(SCALING.denormalize(x))
        assert torch.equal(space.decode(x), space.first_stage.decode_tokens(codes))


def test_encode_is_the_normalised_mean(system):
    images = from_bytes(picture())[None]
    with torch.no_grad():
        found = system.space.encode(images)
        mean = system.space.first_stage.latent_arrays(images)["latents"]
    assert torch.equal(found, (mean - 0.3) / 2)


def test_the_protocol_names_both_models_and_the_scaling(system, home):
    found = system.protocol()
    assert found["digests"]["first_stage"] == store.describe(str(home / "kl")).digest
    assert found["scaling"] == SCALING.model_dump(mode="json")


def test_thresholding_of_latents_is_refused():
    with pytest.raises(ValueError, match="latents have no such range"):
        LatentSampling.model_validate({"thresholding": {"kind": "static"}})
    assert LatentSampling().thresholding.kind == "none"
    assert DiffusionSampling().thresholding.kind == "static"


def test_latents_of_another_first_stage_are_refused(home):
    with pytest.raises(UserError, match=r"another first stage than .*--first-stage"):
        load(home, first_stage=str(home / "vq"))
    assert load(home, first_stage=str(home / "kl")).image_size == 16


def test_a_first_stage_of_another_size_is_refused(home, tmp_path):
    stage = str(home / "kl")
    record = FirstStage(model=stage, digest=store.describe(stage).digest, scaling=SCALING)
    where = saved(tmp_path / "wrong", unet(image_size=16), first_stage=record)
    with pytest.raises(UserError, match=r"shape \(4, 16, 16\), and latents .* \(4, 8, 8\)"):
        load_generator(LatentSystem(model=where))


def test_a_model_without_a_first_stage_is_refused(tmp_path):
    where = saved(tmp_path / "plain", unet())
    with pytest.raises(UserError, match="records no first_stage"):
        load_generator(LatentSystem(model=where))


@pytest.mark.parametrize(
    "solver", ["ddim", "ddpm", "heun", "dpm_solver_pp_2m", "dpm_solver_pp_3m", "unipc"]
)
def test_at_strength_1_repainting_everything_is_text_to_image(system, solver):
    chosen = under(system, solver={"kind": solver})
    edit = ImageEdit(from_bytes(picture()), strength=1.0, mask=torch.ones(1, 16, 16))
    assert torch.equal(generate(chosen, edit=edit), generate(chosen))


@pytest.mark.parametrize(
    "solver", ["ddim", "ddpm", "heun", "dpm_solver_pp_2m", "dpm_solver_pp_sde", "unipc"]
)
def test_kept_pixels_are_exactly_those_of_the_image(system, solver):
    chosen, image = under(system, solver={"kind": solver}, guidance=2.0), picture()
    mask = torch.zeros(1, 16, 16)
    mask[:, 3:9, 5:12] = 1
    edit = ImageEdit(from_bytes(image), strength=1.0, mask=mask)
    found = generate(chosen, edit=edit)
    kept = mask[0] == 0
    assert torch.equal(found[:, :, kept], image[kept].expand(2, 2, -1, -1))
    assert not torch.equal(found[0, 0], image)


def test_the_known_region_follows_its_path_from_noise_to_the_image(system):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    edit = ImageEdit(from_bytes(picture())[None], mask=mask)
    noise = torch.randn((1, 4, 8, 8), generator=rng())
    plain, cond = denoiser(system.network), Condition(label=torch.tensor([1]))
    with torch.no_grad():
        run, x = edited_run(
            system.config.sampling.sampler_run(plain, plain, system.schedule),
            edit,
            system.space,
            noise,
        )
        known = system.space.encode(edit.image)
        for step in run.steps(x, cond, rng()):
            here = system.schedule.at(torch.tensor(step.time, dtype=torch.float64))
            path = float(here.alpha) * known + float(here.sigma) * noise
            torch.testing.assert_close(step.x[..., :4], path[..., :4], atol=1e-5, rtol=1e-5)


def test_image_to_image_starts_at_the_step_of_its_strength(system):
    edit = ImageEdit(from_bytes(picture()), strength=0.5)
    noise = torch.randn((1, 4, 8, 8), generator=rng())
    rows = edit.of([0], torch.device("cpu"))
    plain, cond = denoiser(system.network), Condition(label=torch.tensor([1]))
    run = system.config.sampling.sampler_run(plain, plain, system.schedule)
    with torch.no_grad():
        here = system.schedule.at(run.times[2])
        x = float(here.alpha) * system.space.encode(rows.image) + float(here.sigma) * noise
        x = run.solver.solve(system.schedule, plain, x, run.times[2:], cond, rng())
        expected = to_bytes(system.space.decode(x))
    request = GenerationRequest(PROMPTS[:1], noise=noise, edit=edit)
    assert torch.equal(system.generate(request).images[0], expected)


def test_strength_counts_steps_as_diffusers_does():
    assert [start_of(10, strength) for strength in (1.0, 0.75, 0.3, 0.1)] == [0, 3, 7, 9]
    with pytest.raises(UserError, match="takes none of 10 steps"):
        start_of(10, 0.05)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"strength": 0.0}, "must lie above 0"),
        ({"strength": 1.0}, "nothing of it is left"),
        ({"image": torch.zeros(3, 8, 8), "strength": 0.5}, r"takes \(3, 16, 16\)"),
        ({"mask": torch.full((1, 16, 16), 0.5)}, "other values than 0"),
        ({"image": torch.full((3, 16, 16), torch.nan), "strength": 0.5}, "not finite"),
    ],
)
def test_edits_that_do_not_fit_are_refused(system, edit, message):
    request = GenerationRequest(PROMPTS, edit=ImageEdit(**{"image": torch.zeros(3, 16, 16)} | edit))
    with pytest.raises(UserError, match=message):
        system.generate(request)


def test_a_trajectory_of_latents_shows_images(system):
    seen = []
    system.generate(GenerationRequest(PROMPTS), callback=seen.append)
    assert {tuple(step.x.shape) for step in seen} == {(2, 3, 16, 16)}
    assert seen[-1].done == seen[-1].total == 4


def test_images_are_inverted_through_the_first_stage(system):
    images = from_bytes(picture())[None]
    found = under(system, times={"kind": "uniform", "last": 0.02}).invert(images, PROMPTS[:1])
    assert found.noise.shape == (1, 4, 8, 8)
    assert found.reconstruction.shape == images.shape


def test_python_callers_give_images_as_bytes(system):
    image, mask = picture(), torch.zeros(16, 16, dtype=torch.bool)
    mask[4:8] = True
    loaded = System(system)
    found = loaded.generate(labels=[1], image=image, mask=mask).images[0, 0]
    assert torch.equal(found[~mask], image[~mask])
    assert not torch.equal(found, image)
    with pytest.raises(UserError, match="belong to an image"):
        loaded.generate(labels=[1], strength=0.5)


def test_systems_that_take_no_image_say_so():
    request = GenerationRequest(PROMPTS, edit=ImageEdit(torch.zeros(3, 16, 16), strength=0.5))
    with pytest.raises(UserError, match="does not start from a given image"):
        request.refuse("cascade", noise=True)
