"""Diffusion recipes at the papers' sizes: what `mezzotint check` counts, exactly."""

import json
from pathlib import Path

import pytest

from launch.dry_run.report import dry_run
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
    "unclip_decoder_64": 3_554_414_086,
    "unclip_upsampler_256": 736_263_363,
    "unclip_upsampler_1024": 284_423_043,
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_recipe_has_the_published_size_and_says_so(name):
    recipe = load(f"recipes/{name}.yaml")
    report = dry_run(recipe, Path("runs"))
    assert report.total == COUNTS[name]
    assert f"{COUNTS[name]:,} parameters" in recipe.description


def test_the_command_counts_the_same(mezzotint):
    outcome = mezzotint("check", "recipes/ddpm_cifar10.yaml", "--json")
    assert json.loads(outcome.out)["total"] == COUNTS["ddpm_cifar10"]
