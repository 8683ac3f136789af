"""`mezzotint sample`: pictures of captions from a trained pipeline, on one labelled sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evaluation.config import (
    CascadeSystem,
    DalleSystem,
    DiffusionSystem,
    EvaluationConfig,
    HierarchySystem,
    SystemConfig,
)
from evaluation.grids import Panel, sheet
from evaluation.pixels import to_bytes
from evaluation.samples import Drawn
from evaluation.systems import build_system
from launch.candidates import Request, draw_candidates, ranks
from launch.errors import LaunchError
from launch.pipeline import EvaluateStage, resolve, started
from launch.progress import Reporter


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn."""

    system: str
    number: int
    """Pictures shown per caption."""
    candidates: int | None
    """Pictures drawn per caption to choose among; the system's own number where None."""
    processes: int | None
    """Local processes that draw candidates; one where None."""
    seed: int
    guidance: float | None


def draw_sheet(run: Path, captions: Sequence[str], out: Path, drawing: Drawing) -> bool:
    """Draw pictures of each caption; whether this process wrote them, as one PNG.

    Of several ranks the first writes.

    Raises:
        LaunchError: the run has no such system, its models are not trained yet, or an option does
            not belong to it.
    """
    config = system_of(run, drawing.system)
    if drawing.guidance is not None:
        config = guided_by(config, drawing.guidance)
    writes = ranks().is_main
    with Reporter(None, shows=writes) as reporter:
        match config:
            case DalleSystem():
                pictures, title = best_candidates(config, captions, drawing, reporter)
            case _:
                pictures, title = one_after_the_other(config, captions, drawing, reporter)
    if not writes:
        return False
    panels = [
        Panel(caption, list(shown)) for caption, shown in zip(captions, pictures, strict=True)
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    columns = 1 if drawing.number > 3 else 2
    sheet(panels, columns=columns, title=title, headings=()).save(out)
    return True


def best_candidates(
    config: DalleSystem, captions: Sequence[str], drawing: Drawing, reporter: Reporter
) -> tuple[Tensor, str]:
    """The best of the candidates (B, number, H, W, 3) uint8, best first, and what they are."""
    count = max(drawing.candidates or config.candidates, drawing.number)
    if drawing.candidates is not None and config.ranker is None and count > drawing.number:
        raise LaunchError(
            f"--candidates {drawing.candidates}: {drawing.system} has no ranker to choose among "
            "them; set its ranker in the pipeline, or leave the option out"
        )
    request = Request(config, tuple(captions), count, drawing.seed)
    samples = draw_candidates(request, drawing.processes or 1, reporter.counted("draw"))
    best = f"best of {count}" if config.ranker is not None else "as drawn"
    title = f"{drawing.system}, {best}, seed {drawing.seed}"
    return to_bytes(samples.best_of(drawing.number)), title


def one_after_the_other(
    config: SystemConfig, captions: Sequence[str], drawing: Drawing, reporter: Reporter
) -> tuple[Tensor, str]:
    """Pictures (B, number, H, W, 3) uint8 by the seeds from `seed` on, and what they are."""
    for option, value in (
        ("candidates", drawing.candidates),
        ("processes", drawing.processes),
        ("ranks", ranks().size if ranks().size > 1 else None),
    ):
        if value is not None:
            raise LaunchError(
                f"{option} {value}: {drawing.system} is a {config.kind}, which draws one picture "
                "after the other; systems of kind dalle draw candidates, by several processes"
            )
    drawer, told = build_system(config), reporter.counted("draw")
    rounds = []
    for each in range(drawing.number):
        rounds.append(best(drawer.draw(captions, drawing.seed + each)))
        told(each + 1, drawing.number)
    last = drawing.seed + drawing.number - 1
    title = f"{drawing.system}, seeds {drawing.seed} to {last}"
    return torch.stack(rounds, dim=1), title


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
        case DalleSystem() | HierarchySystem() | DiffusionSystem():
            sampling = config.sampling.model_copy(update={"guidance": guidance})
            return config.model_copy(update={"sampling": sampling})
