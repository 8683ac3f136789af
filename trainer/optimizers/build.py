"""The optimizer of one part."""

from typing import Any

from torch import nn

from mezzotint.common.keyed_random import keyed_seed
from trainer.low_precision.adamw import SmallMomentAdamW
from trainer.low_precision.fp32_params import matrices
from trainer.low_precision.in_backward import InBackwardAdamW
from trainer.optimizers.adamw import SkippableAdamW
from trainer.optimizers.schedules import OptimizerConfig


def build(module: nn.Module, settings: OptimizerConfig) -> SkippableAdamW | SmallMomentAdamW:
    """AdamW over all trainable weights, in two groups where moments differ."""
    trainable = [weight for weight in module.parameters() if weight.requires_grad]
    if settings.moments == "fp32":
        group = {"name": "all", "params": trainable}
        return SkippableAdamW([group], **_adamw_options(settings), fused=True)
    inner = matrices(module)
    known = {id(weight) for weight in inner}
    fp32_params = [weight for weight in trainable if id(weight) not in known]
    groups: list[dict[str, Any]] = [
        {"name": "matrices", "params": inner, "moments": settings.moments},
        {"name": "others", "params": fp32_params, "moments": "fp32"},
    ]
    return SmallMomentAdamW(
        [group for group in groups if group["params"]], **_adamw_options(settings)
    )


def build_in_backward(module: nn.Module, settings: OptimizerConfig, key: str) -> InBackwardAdamW:
    """AdamW that updates bf16 weights in backward; `key` names its random numbers."""
    return InBackwardAdamW(
        [weight for weight in module.parameters() if weight.requires_grad],
        **_adamw_options(settings),
        clip=settings.max_grad_norm_per_parameter,
        seed=keyed_seed(0, "rounding", key),
    )


def _adamw_options(settings: OptimizerConfig) -> dict[str, Any]:
    return {"lr": settings.lr.peak, **settings.model_dump(include={"betas", "eps", "weight_decay"})}
