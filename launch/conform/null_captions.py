"""The share of samples that training shows without their caption or class."""

from dataclasses import dataclass, field
from typing import Any, Never

import torch
from torch import Tensor, nn

from launch.conform.check import CheckResult
from launch.conform.trained_run import TrainedRun
from models.diffusion.condition import Condition
from models.diffusion.network import ClassConfig
from trainer.tasks.autoregressive import AutoregressiveConfig
from trainer.tasks.conditioning.captions import (
    ClipTextCondition,
    FeaturesCondition,
    TextCondition,
)
from trainer.tasks.conditioning.clip_image import ClipImageCondition
from trainer.tasks.conditions import ClassCondition, caption_conditions
from trainer.tasks.control import ControlTaskConfig, with_caption_drop
from trainer.tasks.denoising import DenoisingConfig

_Dropped = (
    ClassCondition | TextCondition | FeaturesCondition | ClipTextCondition | ClipImageCondition
)
SAMPLES, BATCH = 512, 64
DEVIATIONS = 4.0
"""Standard deviations of the binomial distribution that the share may be off."""


class _Recorded(Exception):
    """The inputs of the network are known."""


@dataclass(frozen=True)
class _RecordingEngine:
    """Keeps the inputs of its part and computes nothing."""

    module: nn.Module
    inputs: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, *inputs: Any) -> Never:  # noqa: ANN401 - whatever the part's forward takes
        self.inputs.append(inputs)
        raise _Recorded


def null_captions(run: TrainedRun) -> CheckResult | None:
    """As many samples have no caption, or no class, as the recipe says."""
    declared = _declared(run)
    if not declared:
        return None
    engine = _RecordingEngine(run.model)
    dropped, count = dict.fromkeys(declared, 0), 0
    for number in range(SAMPLES // BATCH):
        batch = run.batch(BATCH, number * BATCH)
        try:
            for _ in run.inputs.task.losses({"model": engine}, batch, run.step(number)):
                pass
        except _Recorded:
            pass
        nulls = _nulls(run, engine.inputs.pop())
        written = torch.tensor([bool(each.strip()) for each in batch.captions], device=run.device)
        for kind in declared:
            dropped[kind] += int((nulls[kind] & written).sum())
        count += int(written.sum())
    words, passed = [], True
    for kind, share in declared.items():
        found, deviation = dropped[kind] / count, (share * (1 - share) / count) ** 0.5
        passed = passed and abs(found - share) <= DEVIATIONS * deviation
        words.append(f"{found:.1%} of {count} samples have no {kind}, the recipe says {share:.0%}")
    return CheckResult("share without condition", passed, "; ".join(words))


def _declared(run: TrainedRun) -> dict[str, float]:
    """The shares of the recipe that are not 0, by kind of condition."""
    match run.recipe.task:
        case AutoregressiveConfig(caption_drop=drop):
            return {"text": drop} if drop else {}
        case DenoisingConfig(condition=condition) as task:
            if isinstance(task, ControlTaskConfig):
                condition = with_caption_drop(condition, task.caption_drop)
            return {
                each.kind: each.drop
                for each in caption_conditions(condition)
                if isinstance(each, _Dropped) and each.drop
            }
        case _:
            return {}


def _nulls(run: TrainedRun, inputs: tuple[Any, ...]) -> dict[str, Tensor]:
    """Which samples (B,) have no condition, by its kind."""
    condition = next((each for each in inputs if isinstance(each, Condition)), None)
    if condition is None:
        return {"text": (inputs[0] == 0).all(dim=1)}
    found = {}
    if condition.text is not None:
        found["text"] = (condition.text == 0).all(dim=1)
    if condition.features is not None and condition.empty_features is not None:
        features = (condition.features == condition.empty_features).flatten(1).all(dim=1)
        found["features" if condition.text_embedding is None else "clip_text"] = features
    if condition.image_embedding is not None and condition.null_embedding is not None:
        found["clip_image"] = condition.null_embedding
    config = run.recipe.model
    if condition.label is not None and isinstance(config, ClassConfig):
        found["class"] = condition.label.eq(config.classes or 0)
    return found
