"""Diffusion recipes at the papers' sizes: what `mezzotint check` counts, exactly."""

import json
from pathlib import Path

import pytest

from launch.dry_run.report import dry_run
from models.diffusion.schedules.discrete import DiscreteSchedule
from trainer.recipe import load

COUNTS = {
    "ddpm_cifar10": 35_746_307,
    "adm_64": 295_904_454,
    "adm_128": 421_529_606,
    "adm_256": 553_838_086,
    "adm_512": 558_997_638,
    "adm_64_256": 311_795_910,
    "adm_128_512": 308_835_270,
    "adm_classifier_64": 65_438_568,
    "adm_classifier_128": 42_568_040,
    "adm_classifier_256": 54_096_360,
    "adm_classifier_512": 54_448_360,
    "imagenet_dit_xl2": 675_129_632,
    "unclip_decoder_64": 3_564_911_110,
    "karlo_decoder_64": 893_318_086,
    "karlo_upsampler_256": 691_579_523,
    "unclip_upsampler_256": 736_263_363,
    "unclip_upsampler_1024": 284_423_043,
    "unclip_prior": 1_225_927_680,
    "unclip_prior_karlo": 1_022_030_080,
    "unclip_ar_prior": 1_218_307_072,
}
LATENT = {
    "ldm_text2img_256": {"denoiser": 872_300_484, "text_encoder": 542_895_360},
    "sd1": {"denoiser": 859_520_964},
    "stable_unclip_h": {"denoiser": 870_173_124},
    "ldm_cin256_v2": {"denoiser": 400_920_579, "class_embedding": 512_512},
    "ldm_cin_vq_f8": {"denoiser": 394_984_196, "class_embedding": 512_000},
    "ldm_ffhq_vq_f4": {"denoiser": 274_056_163},
    "ldm_churches_kl_f8": {"denoiser": 294_966_916},
}


@pytest.mark.parametrize("name", LATENT)
def test_a_recipe_of_latent_diffusion_has_the_published_sizes_by_component(name):
    recipe = load(f"recipes/{name}.yaml")
    report = dry_run(recipe, Path("runs"))
    assert report.components == {"model": LATENT[name]}
    assert report.total == sum(LATENT[name].values())
    for count in LATENT[name].values():
        assert f"{count:,}" in recipe.description
    assert isinstance(recipe.model.process.schedule, DiscreteSchedule)
    assert recipe.model.process.schedule.betas.kind == "sqrt_linear"


@pytest.mark.parametrize("name", COUNTS)
def test_a_recipe_has_the_published_size_and_says_so(name):
    recipe = load(f"recipes/{name}.yaml")
    report = dry_run(recipe, Path("runs"))
    assert report.total == COUNTS[name]
    assert f"{COUNTS[name]:,} parameters" in recipe.description


def test_the_command_counts_the_same(mezzotint):
    outcome = mezzotint("check", "recipes/ddpm_cifar10.yaml", "--json")
    assert json.loads(outcome.out)["total"] == COUNTS["ddpm_cifar10"]


def test_the_control_of_stable_diffusion_1_has_the_released_sizes():
    recipe = load("recipes/sd1_control.yaml")
    report = dry_run(recipe, Path("runs"))
    parts = {"encoder": 348_712_960, "hint": 1_086_480, "zero": 11_479_680}
    assert report.parameters == {"model": parts}
    assert report.total == sum(parts.values()) == 361_279_120
    assert recipe.model.base == load("recipes/sd1.yaml").model
