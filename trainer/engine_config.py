"""Settings of an engine: precision, activation checkpointing and DeepSpeed's JSON.

Derived from the recipe alone, without DeepSpeed, so that a recipe can be checked anywhere.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mezzotint.common.errors import UserError
from models.activation_checkpointing import enable_activation_checkpointing
from models.regional_compile import compile_blocks
from trainer.low_precision.gradient_scaling import PerBlockScaling, WholeScaling, residual_branches
from trainer.low_precision.powersgd import PowerSGDConfig
from trainer.recipe import Precision, Recipe, Update


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """What `auto` means on this machine's device."""
    if device.type == "cuda":
        return chosen_precision(precision, gpu=True, bf16=torch.cuda.is_bf16_supported())
    return chosen_precision(precision, gpu=False, bf16=torch.cpu._is_avx512_bf16_supported())


def chosen_precision(precision: Precision, *, gpu: bool, bf16: bool) -> Precision:
    """What `auto` means: bf16 where it is fast, else fp16 (GPU) or fp32 (CPU).

    On a CPU with bf16 instructions weights stay fp32 and matrix products run in bf16.
    """
    if precision in ("fp16", "autocast_fp16") and not gpu:
        raise UserError(
            f"engine.precision: {precision} is not supported on this CPU; use auto, fp32 or bf16"
        )
    if precision != "auto":
        return precision
    if gpu:
        return "bf16" if bf16 else "fp16"
    return "autocast_bf16" if bf16 else "fp32"


def wraps_optimizer(zero: int, precision: Precision, update: Update = "after_backward") -> bool:
    """Whether DeepSpeed wraps the optimizer; only then it clips, and knows the gradient's norm."""
    return zero > 0 or (precision in ("bf16", "fp16") and update == "after_backward")


def stored_dtype(precision: Precision) -> torch.dtype:
    """What a network's weights are kept in; `precision` is not auto."""
    match precision:
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case _:
            return torch.float32


def deepspeed_config(recipe: Recipe, part: str, world: int, precision: Precision) -> dict[str, Any]:
    """DeepSpeed's JSON for one part, derived from the recipe and the number of processes."""
    micro = recipe.micro_batch_for(world)
    zero = recipe.engine.zero_of(part)
    clip = recipe.optimizer_of(part).max_grad_norm
    config: dict[str, Any] = {
        "train_batch_size": recipe.batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": recipe.batch // (micro * world),
        "gradient_clipping": clip if clip and wraps_optimizer(zero, precision) else 0.0,
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    if zero >= 2 and stored_dtype(precision) != torch.float32 and micro * world < recipe.batch:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if zero == 3:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    match precision:
        case "fp32" | "autocast_fp16":  # the engine casts for fp16, without DeepSpeed's loss scale
            pass
        case "autocast_bf16":
            config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
        case "bf16" if recipe.engine.update == "in_backward":  # DeepSpeed would copy all weights
            pass
        case "bf16":
            config["bf16"] = {"enabled": True}
            if recipe.engine.master_dtype == "bf16":
                config["bf16"]["bf16_master_weights_and_grads"] = True
                config["bf16"]["bf16_optimizer_states"] = True
        case "fp16":
            config["fp16"] = {"enabled": True, "initial_scale_power": 16}
        case "auto":
            raise ValueError("precision must be resolved first")
    return config


def check_update(recipe: Recipe, part: str, precision: Precision, world: int) -> None:
    """Refuse what does not go with where the optimizer runs; `precision` is not auto.

    Raises:
        UserError: with the key and what it needs.
    """
    settings, zero = recipe.optimizer_of(part), recipe.engine.zero_of(part)
    if recipe.engine.update == "after_backward":
        if settings.max_grad_norm_per_parameter is not None:
            raise UserError(
                "optimizer.max_grad_norm_per_parameter: needs engine.update=in_backward; use "
                "optimizer.max_grad_norm"
            )
        return
    micro = recipe.micro_batch_for(world)
    needs = (
        (world > 1, "one process", f"engine.processes=1, not {world}"),
        (zero > 0, "unsharded weights", f"engine.zero=0, not {zero}"),
        (precision != "bf16", "bf16 weights", f"engine.precision=bf16, not {precision}"),
        (
            settings.moments != "bf16",
            "bf16 moments",
            f"optimizer.moments=bf16, not {settings.moments}",
        ),
        (
            micro < recipe.batch,
            "gradients that are complete after one backward",
            f"micro_batch={recipe.batch}, not {micro}",
        ),
        (
            settings.max_grad_norm is not None,
            "no global norm, which is known too late",
            "optimizer.max_grad_norm=null, and optimizer.max_grad_norm_per_parameter to clip each "
            "parameter's own",
        ),
    )
    for missing, what, key in needs:
        if missing:
            raise UserError(f"engine.update: in_backward needs {what}: set {key}")


def check_numerics(recipe: Recipe, part: str, precision: Precision) -> None:
    """Refuse incompatible settings of one part; `precision` is not auto.

    Raises:
        UserError: with the key and what it needs.
    """
    settings, zero = recipe.engine, recipe.engine.zero_of(part)
    moments = recipe.optimizer_of(part).moments
    whole_weights = precision in ("fp32", "autocast_bf16", "autocast_fp16")
    if settings.master_dtype == "bf16" and (precision != "bf16" or zero == 0 or moments == "fp32"):
        raise UserError(
            "engine.master_dtype: bf16 needs engine.precision=bf16, engine.zero of 1 to 3 and "
            f"optimizer.moments bf16 or codec_16, not {precision}, {zero} and {moments}"
        )
    if settings.fp32_logits and not whole_weights:
        raise UserError(
            f"engine.fp32_logits: with engine.precision={precision} DeepSpeed casts every weight; "
            "use autocast_bf16 or autocast_fp16, which keep gains, biases and embeddings in fp32"
        )
    match settings.gradient_scaling:
        case PerBlockScaling():
            if settings.compile:
                raise UserError(
                    "engine.compile: does not go with engine.gradient_scaling of kind per_block, "
                    "whose scales act inside the blocks; leave one of them out"
                )
            if not whole_weights:
                raise UserError(
                    "engine.gradient_scaling: per_block needs fp32 weights, whose products "
                    f"autocast makes 16-bit: not engine.precision={precision} but autocast_fp16, "
                    "autocast_bf16 or fp32"
                )
        case WholeScaling():
            if precision == "autocast_fp16":
                raise UserError(
                    "engine.precision: autocast_fp16 underflows without "
                    "engine.gradient_scaling={kind: per_block}"
                )
    if isinstance(settings.compression, PowerSGDConfig) and (zero > 0 or not whole_weights):
        raise UserError(
            "engine.compression: powersgd needs engine.zero=0 and fp32 weights "
            f"(engine.precision fp32, autocast_bf16 or autocast_fp16), not {zero} and "
            f"{precision}: ZeRO sends each process the sums of its shard alone"
        )


def prepare(parts: Mapping[str, nn.Module], recipe: Recipe) -> None:
    """Apply the engine's settings to the parts of a task.

    Raises:
        UserError: the recipe names a part that the task does not have, or asks for activation
            checkpointing of a part without blocks.
    """
    named = {"optimizers": recipe.optimizers, "engine.zero_per_part": recipe.engine.zero_per_part}
    for key, settings in named.items():
        unknown = sorted(set(settings) - set(parts))
        if unknown:
            raise UserError(
                f"{key}.{unknown[0]}: no such part; this task's parts are "
                f"{', '.join(sorted(parts))}"
            )
    per_block = isinstance(recipe.engine.gradient_scaling, PerBlockScaling)
    for name, part in parts.items():
        if per_block and not residual_branches(part):
            raise UserError(
                f"engine.gradient_scaling: {name} has no transformer blocks to give "
                "scales of their own; use kind=whole"
            )
    for name, part in parts.items():
        if recipe.engine.compile and not compile_blocks(part):
            raise UserError(f"engine.compile: {name} has no blocks to compile; leave it out")
    for name, part in parts.items():
        if recipe.engine.activation_checkpointing and not enable_activation_checkpointing(part):
            raise UserError(
                f"engine.activation_checkpointing: {name} has no blocks that can be computed "
                "again; leave it out"
            )
