"""What engines are told."""

import pytest
import torch

from models.clip import ClipConfig
from trainer.engine_config import chosen_precision, deepspeed_config, prepare, wraps_optimizer
from trainer.errors import TrainError
from trainer.recipe import load

DVAE = "recipes/emoji_dvae.yaml"


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
    with pytest.raises(TrainError, match=r"engine.precision: fp16 is not supported on this CPU"):
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
    recipe = load(DVAE, [f"engine.zero={zero}", "optimizer.clip=2.5"])
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
    with pytest.raises(TrainError, match=r"engine.activation_checkpointing: model has no blocks"):
        prepare(clip, recipe)
    wrong = load(DVAE, ["optimizers.critic={lr: {peak: 1e-3}}"])
    with pytest.raises(TrainError, match=r"optimizers.critic: no such part; .* are model"):
        prepare(parts, wrong)
