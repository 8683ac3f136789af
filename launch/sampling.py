"""`mezzotint sample`: pictures of captions from a trained pipeline, on one labelled sheet."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from evaluation.config import (
    CascadeSystem,
    DalleSystem,
    EvaluationConfig,
    HierarchySystem,
    SystemConfig,
)
from evaluation.grids import Panel, sheet
from evaluation.samples import Drawn
from evaluation.systems import build_system
from launch.errors import LaunchError
from launch.pipeline import EvaluateStage, resolve, started


def draw_sheet(
    run: Path,
    captions: Sequence[str],
    out: Path,
    *,
    system: str,
    number: int,
    seed: int,
    guidance: float | None,
) -> None:
    """Draw `number` pictures of each caption and write them as one PNG.

    Raises:
        LaunchError: the run has no such system, or its models are not trained yet.
    """
    config = system_of(run, system)
    if guidance is not None:
        config = guided_by(config, guidance)
    drawer = build_system(config)
    rounds = [best(drawer.draw(captions, seed + each)) for each in range(number)]
    panels = [
        Panel(caption, [pictures[index] for pictures in rounds])
        for index, caption in enumerate(captions)
    ]
    title = f"{system}, seeds {seed} to {seed + number - 1}"
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet(panels, columns=1 if number > 3 else 2, title=title, headings=()).save(out)


def best(drawn: Drawn) -> Tensor:
    """The best candidate of each caption, or the only one."""
    if drawn.scores is None:
        return drawn.pictures[:, 0]
    return drawn.pictures[torch.arange(len(drawn.pictures)), drawn.scores.argmax(dim=1)]


def system_of(run: Path, name: str) -> SystemConfig:
    """The system that the evaluate stage `name` of a pipeline's run judges."""
    if not (run / "pipeline.yaml").is_file():
        raise LaunchError(f"{run}: is no pipeline's run directory; it has no pipeline.yaml")
    pipeline = started(run)
    systems = {}
    for key, stage in pipeline.stages.items():
        if isinstance(stage, EvaluateStage) and isinstance(stage.evaluation, EvaluationConfig):
            systems[key] = stage
    if name not in systems:
        raise LaunchError(f"--system {name}: {run} has {', '.join(systems) or 'no systems'}")
    resolved = resolve(pipeline, name, run)
    assert isinstance(resolved, EvaluateStage)
    assert isinstance(resolved.evaluation, EvaluationConfig)
    return resolved.evaluation.system


def guided_by(config: SystemConfig, guidance: float) -> SystemConfig:
    """The system with another guidance scale."""
    match config:
        case CascadeSystem():
            base = config.base_sampling.model_copy(update={"guidance": guidance})
            return config.model_copy(update={"base_sampling": base})
        case DalleSystem() | HierarchySystem():
            sampling = config.sampling.model_copy(update={"guidance": guidance})
            return config.model_copy(update={"sampling": sampling})
