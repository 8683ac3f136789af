"""What engines are told."""

import pytest
import torch

from mezzotint.common.errors import UserError
from models.clip import ClipConfig
from trainer.engine_config import (
    check_numerics,
    check_update,
    chosen_precision,
    deepspeed_config,
    prepare,
    wraps_optimizer,
)
from trainer.recipe import load

DVAE = "recipes/emoji_dvae.yaml"
INSIDE = [
    *("engine.update=in_backward", "engine.zero=0", "batch=8"),
    *("optimizer.moments=bf16", "optimizer.max_grad_norm=null"),
]


@pytest.mark.parametrize(
    ("gpu", "bf16", "chosen"),
    [
        (True, True, "bf16"),
        (True, False, "fp16"),
        (False, True, "autocast_bf16"),
        (False, False, "fp32"),
    ],
)
def test_auto_is_the_fast_precision_of_the_device_and_others_stay(gpu, bf16, chosen):
    assert chosen_precision("auto", gpu=gpu, bf16=bf16) == chosen
    for named in ("fp32", "bf16", "autocast_bf16"):
        assert chosen_precision(named, gpu=gpu, bf16=bf16) == named


def test_fp16_needs_a_gpu():
    assert chosen_precision("fp16", gpu=True, bf16=True) == "fp16"
    with pytest.raises(UserError, match=r"engine.precision: fp16 is not supported on this CPU"):
        chosen_precision("fp16", gpu=False, bf16=True)


def test_the_batch_is_shared_by_processes_and_accumulation():
    config = deepspeed_config(load(DVAE, ["batch=48", "micro_batch=4"]), "model", 3, "bf16")
    assert config["train_batch_size"] == 48
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 4
    assert config["bf16"] == {"enabled": True}


@pytest.mark.parametrize("precision", ["fp32", "autocast_bf16", "bf16", "fp16"])
@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_deepspeed_clips_exactly_where_it_wraps_the_optimizer(zero, precision):
    recipe = load(DVAE, [f"engine.zero={zero}", "optimizer.max_grad_norm=2.5"])
    config = deepspeed_config(recipe, "model", 1, precision)
    wrapped = zero > 0 or precision in {"bf16", "fp16"}
    assert wraps_optimizer(zero, precision) == wrapped
    assert config["gradient_clipping"] == (2.5 if wrapped else 0.0)
    assert config["zero_optimization"]["stage"] == zero


def test_parts_are_made_ready_only_as_the_recipe_can_mean_it():
    with torch.device("meta"):
        parts = {"model": load(DVAE).model.build()}
        clip = {"model": ClipConfig(image_size=8, patch=4, text_vocab=9, text_length=3).build()}
    recipe = load(DVAE, ["engine.activation_checkpointing=true"])
    prepare(parts, recipe)
    with pytest.raises(UserError, match=r"engine.activation_checkpointing: model has no blocks"):
        prepare(clip, recipe)
    with pytest.raises(UserError, match=r"engine.compile: model has no blocks to compile"):
        prepare(clip, load(DVAE, ["engine.compile=true"]))
    wrong = load(DVAE, ["optimizers.critic={lr: {peak: 1e-3}}"])
    with pytest.raises(UserError, match=r"optimizers.critic: no such part; .* are model"):
        prepare(parts, wrong)


def test_updates_inside_backward_leave_deepspeed_no_copies_to_make():
    recipe = load(DVAE, INSIDE)
    check_update(recipe, "model", "bf16", 1)
    check_numerics(recipe, "model", "bf16")
    config = deepspeed_config(recipe, "model", 1, "bf16")
    assert "bf16" not in config
    assert config["gradient_accumulation_steps"] == 1
    assert not wraps_optimizer(0, "bf16", "in_backward")


@pytest.mark.parametrize(
    ("changes", "precision", "world", "message"),
    [
        ([], "bf16", 2, "one process: set engine.processes=1, not 2"),
        (["engine.zero=2"], "bf16", 1, "unsharded weights: set engine.zero=0, not 2"),
        ([], "autocast_bf16", 1, "bf16 weights: set engine.precision=bf16, not autocast_bf16"),
        (["optimizer.moments=codec_16"], "bf16", 1, "set optimizer.moments=bf16, not codec_16"),
        (["micro_batch=4"], "bf16", 1, "one backward: set micro_batch=8, not 4"),
        (
            ["optimizer.max_grad_norm=1.0"],
            "bf16",
            1,
            "set optimizer.max_grad_norm=null, and optimizer.max_grad_norm_per_parameter",
        ),
    ],
)
def test_what_cannot_go_with_updates_inside_backward_is_refused(changes, precision, world, message):
    recipe = load(DVAE, [*INSIDE, *changes])
    with pytest.raises(UserError, match=r"engine.update: in_backward needs") as refusal:
        check_update(recipe, "model", precision, world)
    assert message in str(refusal.value)


def test_a_bound_for_each_weight_needs_updates_inside_backward():
    recipe = load(DVAE, ["optimizer.max_grad_norm_per_parameter=1.0"])
    with pytest.raises(
        UserError,
        match=r"optimizer.max_grad_norm_per_parameter: needs engine.update=in_backward",
    ):
        check_update(recipe, "model", "fp32", 1)


@pytest.mark.parametrize(
    ("changes", "precision", "message"),
    [
        (
            ["engine.compile=true", "engine.gradient_scaling={kind: per_block}"],
            "fp32",
            "engine.compile: does not go with engine.gradient_scaling of kind per_block",
        ),
        (["engine.master_dtype=bf16"], "bf16", "engine.master_dtype: bf16 needs"),
        (["engine.fp32_logits=true"], "bf16", "engine.fp32_logits: with engine.precision=bf16"),
        (
            ["engine.gradient_scaling={kind: per_block}"],
            "bf16",
            "engine.gradient_scaling: per_block needs fp32 weights",
        ),
        ([], "autocast_fp16", "engine.precision: autocast_fp16 underflows"),
        (
            ["engine.compression={kind: powersgd, rank: 8}", "engine.zero=2"],
            "fp32",
            "engine.compression: powersgd needs engine.zero=0",
        ),
    ],
)
def test_numerics_that_cannot_be_had_together_are_refused(changes, precision, message):
    with pytest.raises(UserError) as refusal:
        check_numerics(load(DVAE, changes), "model", precision)
    assert str(refusal.value).startswith(message)
