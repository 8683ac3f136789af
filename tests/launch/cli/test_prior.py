"""The mask doctor and completion, as commands."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from launch.dry_run.attention_masks import check_mask_by_gradient, format_ranges
from mezzotint.inference.config import CascadeSystem, DalleSystem
from mezzotint.inference.dalle import DalleGenerator
from mezzotint.inference.runtime import Runtime
from models import store
from models.autoencoders.dvae import DVAEConfig
from models.autoregressive.patterns import Row, joint_mask
from models.autoregressive.prior import PriorConfig
from models.autoregressive.sparse import attend_blocks

SMALL = ("model.mask_flavor=paper", "model.text_length=6", "data.text.length=6")


def test_inspect_mask_counts_renders_and_checks_every_mask(mezzotint, tmp_path):
    outcome = mezzotint(
        "inspect-mask", "recipes/emoji_prior.yaml", *SMALL, "--out", tmp_path / "masks", "--json"
    )
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    masks = {mask["name"]: mask for mask in found["masks"]}
    assert list(masks) == ["row", "column", "convolution"]
    assert masks["row"]["layers"] == [1, 3, 4, 5]
    assert masks["column"]["image_scores"] == 8 * 36
    assert masks["row"]["cache_entries"] == 7 + 9
    assert masks["column"]["cache_entries"] == masks["column"]["dense_cache_entries"] == 70
    for mask in masks.values():
        assert mask["check"] == {"causal": True, "exact": True}
        assert mask["density"] == pytest.approx(mask["scores"] / (70 * 71 / 2))
        with Image.open(mask["image"]) as image:
            assert image.width == image.height >= 640
    assert 0 < found["attention_flop_saved"] < 1
    assert 0 < found["cache_saved"] < 1


def test_inspect_mask_prints_text(mezzotint):
    outcome = mezzotint("inspect-mask", "recipes/emoji_prior.yaml", *SMALL)
    assert "row: 4 layers (1, 3-5)" in outcome.out
    assert outcome.out.count("by gradients: passed") == 3


def test_inspect_mask_refuses_a_recipe_without_masks(refused):
    assert "has no attention masks" in refused("inspect-mask", "recipes/emoji_base.yaml")


def test_the_check_fails_for_an_attention_that_reads_the_future_or_too_little():
    mask = joint_mask(Row(4), 3, 3 + 12)

    def leaking(query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    assert not check_mask_by_gradient(leaking, mask).causal

    def dense(query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    assert check_mask_by_gradient(dense, mask).causal
    assert not check_mask_by_gradient(dense, mask).exact
    assert check_mask_by_gradient(lambda q, k, v: attend_blocks(q, k, v, 3, Row(4)), mask).exact


def test_long_lists_of_layers_are_shortened():
    assert format_ranges((1, 2, 3, 5)) == "1-3, 5"
    assert format_ranges(tuple(range(1, 20, 2))) == "1, 3, 5, 7, …, 19"


@pytest.mark.parametrize(
    ("recipe", "matrices"),
    [("dalle_prior_2.8b", 2_831_155_200), ("dalle_prior_5.6b", 5_549_064_192)],
)
def test_check_counts_the_papers_matrices_of_the_smaller_priors(
    mezzotint, tmp_path, recipe, matrices
):
    words = ("check", f"recipes/{recipe}.yaml", "--json", "--runs", tmp_path)
    assert json.loads(mezzotint(*words).out)["block_matrices"] == {"model": matrices}


class Ones:
    """A tokenizer that reads every caption alike."""

    def __call__(self, captions):
        return torch.ones(len(captions), 3).long()

    def lost(self, caption):
        return ""


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A run with a tiny system, new and untrained."""
    torch.manual_seed(0)
    dvae = (
        DVAEConfig(image_size=16, vocab=8, width=8, groups=2, patch=2, initial_width=8)
        .build()
        .eval()
    )
    prior = PriorConfig(
        text_vocab=9, text_length=3, image_vocab=8, grid=(4, 4), width=16, layers=2, heads=1,
        head_width=16,
    ).build().eval()  # fmt: skip
    store.save(str(tmp_path / "dvae"), dvae.config, dvae.state_dict(), card="")
    config = DalleSystem(prior="prior", dvae=str(tmp_path / "dvae"), candidates=1)
    generator = DalleGenerator(config, prior, dvae, Ones(), Runtime.of())
    monkeypatch.setattr("launch.sampling.complete.system_of", lambda run, name: config)
    monkeypatch.setattr(
        "mezzotint.inference.dalle.DalleGenerator.load", lambda config, runtime: generator
    )


def test_complete_writes_a_grid(mezzotint, trained, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "given.png")
    out = tmp_path / "completed.png"
    words = ("complete", "runs/x", tmp_path / "given.png", "a", "b", "--out", out)
    outcome = mezzotint(*words, "--candidates", "5", "--number", "3")
    assert outcome.code == 0, outcome.err
    assert "the upper 1 rows kept, 3 completions" in outcome.out
    first = out.read_bytes()
    mezzotint(*words, "--candidates", "5", "--number", "3")
    assert out.read_bytes() == first
    mezzotint(*words, "--candidates", "5", "--number", "3", "--seed", "1")
    assert out.read_bytes() != first


def test_complete_refuses_what_it_cannot_do(refused, trained, tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "given.png")
    words = ("complete", "runs/x", tmp_path / "given.png", "a", "--out", tmp_path / "out.png")
    assert "has 4 rows; 9" in refused(*words, "--rows", "9")
    assert "no such image" in refused("complete", "runs/x", tmp_path / "none.png", "a")
    cascade = CascadeSystem(base="base", upsampler="upsampler")
    monkeypatch.setattr("launch.sampling.complete.system_of", lambda run, name: cascade)
    assert "only a prior over codes completes" in refused(*words)
