"""What an engine is told: precision, activation checkpointing and DeepSpeed's JSON.

Derived from the recipe alone, without DeepSpeed, so that a recipe can be checked anywhere.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from models.recompute import recompute
from trainer.errors import TrainError
from trainer.recipe import Precision, Recipe


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What `auto` means on this machine's device."""
    if device.type == "cuda":
        return chosen_precision(precision, gpu=True, bf16=torch.cuda.is_bf16_supported())
    return chosen_precision(precision, gpu=False, bf16=torch.cpu._is_avx512_bf16_supported())


def chosen_precision(precision: Precision, *, gpu: bool, bf16: bool) -> Precision:
    """What `auto` means: bf16 where it is fast, else fp16 (GPU) or fp32 (CPU).

    On a CPU with bf16 instructions weights stay fp32 and matrix products run in bf16.
    """
    if precision == "fp16" and not gpu:
        raise TrainError(
            "engine.precision: fp16 is not supported on this CPU; use auto, fp32 or bf16"
        )
    if precision != "auto":
        return precision
    if gpu:
        return "bf16" if bf16 else "fp16"
    return "autocast_bf16" if bf16 else "fp32"


def wraps_optimizer(zero: int, precision: Precision) -> bool:
    """Whether DeepSpeed wraps the optimizer; only then it clips, and knows the gradient's norm."""
    return zero > 0 or precision in ("bf16", "fp16")


def deepspeed_config(recipe: Recipe, part: str, world: int, precision: Precision) -> dict[str, Any]:
    """DeepSpeed's JSON for one part, derived from the recipe and the number of processes."""
    micro = recipe.micro_batch_for(world)
    zero = recipe.engine.zero_of(part)
    clip = recipe.optimizer_of(part).clip
    config: dict[str, Any] = {
        "train_batch_size": recipe.batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": recipe.batch // (micro * world),
        "gradient_clipping": clip if clip and wraps_optimizer(zero, precision) else 0.0,
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if zero == 3:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    match precision:
        case "fp32":
            pass
        case "autocast_bf16":
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        case "bf16":
            config["bf16"] = {"enabled": True}
        case "fp16":
            config["fp16"] = {"enabled": True, "initial_scale_power": 16}
        case "auto":
            raise ValueError("precision must be resolved first")
    return config


def prepare(parts: Mapping[str, nn.Module], recipe: Recipe) -> None:
    """Ready the parts of a task for their engines.

    Raises:
        TrainError: the recipe speaks of a part the task does not have, or asks for activation
            checkpointing of a part without blocks.
    """
    named = {"optimizers": recipe.optimizers, "engine.zeros": recipe.engine.zeros}
    for key, settings in named.items():
        unknown = sorted(set(settings) - set(parts))
        if unknown:
            raise TrainError(
                f"{key}.{unknown[0]}: no such part; this task's parts are "
                f"{', '.join(sorted(parts))}"
            )
    if not recipe.engine.activation_checkpointing:
        return
    for name, part in parts.items():
        if not recompute(part):
            raise TrainError(
                f"engine.activation_checkpointing: {name} has no blocks that can be computed "
                "again; leave it out"
            )
