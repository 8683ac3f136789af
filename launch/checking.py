"""What a recipe would do, worked out without starting anything."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from models.autoregressive.prior import PriorConfig
from models.config import text_shape
from trainer.engine_config import deepspeed_config, resolve_precision
from trainer.recipe import Recipe, dump
from trainer.run import RunDirectory


@dataclass(frozen=True)
class Report:
    """A dry run: `parameters` by part and submodule, exact, counted on the meta device."""

    recipe: Mapping[str, Any]
    resolved: str
    parameters: Mapping[str, Mapping[str, int]]
    total: int
    steps: int
    per_step: Mapping[str, int]
    deepspeed: Mapping[str, Any]
    writes: tuple[str, ...]

    def to_json(self) -> str:
        """One JSON object."""
        tree = asdict(self)
        del tree["resolved"]
        return json.dumps(tree, indent=1)

    def to_text(self) -> str:
        """For people."""
        lines = [self.resolved.rstrip(), "", "parameters (exact, trainable):"]
        for part, modules in self.parameters.items():
            lines += [f"  {part}.{name}: {count:,}" for name, count in modules.items()]
        lines += [f"  total: {self.total:,}", "", f"steps: {self.steps:,}"]
        lines += [f"per step: {count:,} {unit}" for unit, count in self.per_step.items()]
        lines += ["", "deepspeed:", json.dumps(self.deepspeed, indent=1), "", "would write:"]
        lines += [f"  {path}" for path in self.writes]
        return "\n".join(lines)


def check_recipe(recipe: Recipe, runs: Path, processes: int) -> Report:
    """Resolve, count and plan; nothing is started and nothing is written.

    Raises:
        TrainError: the global batch cannot be shared by that many processes.
    """
    with torch.device("meta"):
        parts = recipe.task.build(recipe.model.build()).parts()
    parameters = {
        part: {
            name: sum(weight.numel() for weight in child.parameters())
            for name, child in module.named_children()
        }
        | {name: weight.numel() for name, weight in module.named_parameters(recurse=False)}
        for part, module in parts.items()
    }
    per_step = {"images": recipe.batch, "samples per forward": recipe.micro_batch_for(processes)}
    shape = text_shape(recipe.model)
    if shape is not None:
        per_step["text tokens"] = recipe.batch * shape.length
    if isinstance(recipe.model, PriorConfig):
        per_step["image tokens"] = recipe.batch * recipe.model.image_length
    run = RunDirectory(runs / recipe.name)
    precision = resolve_precision(recipe.engine.precision, torch.device("cpu"))
    return Report(
        recipe=recipe.model_dump(mode="json"),
        resolved=dump(recipe),
        parameters=parameters,
        total=sum(count for part in parameters.values() for count in part.values()),
        steps=recipe.steps,
        per_step=per_step,
        deepspeed=deepspeed_config(recipe, next(iter(parts)), processes, precision),
        writes=tuple(
            str(path)
            for path in (run.recipe, run.metrics, run.checkpoints, run.previews, run.model)
        ),
    )
