"""What a result page shows of a pipeline's stages."""

from pathlib import Path

from launch.pipeline.config import started
from launch.pipeline.state import Ledger
from launch.report.html import StageView


def stage_views(root: Path) -> list[StageView]:
    """One view per stage, in the pipeline's order; stages not finished are shown as such."""
    ledger = Ledger(root)
    views = []
    for name, stage in started(root).stages.items():
        directory, entry = ledger.directory(name), ledger.read(name)
        metrics, model = directory / "metrics.jsonl", directory / "model"
        views.append(
            StageView(
                name=name,
                kind=stage.kind,
                status="finished" if entry else "not finished",
                seconds=entry.seconds if entry else None,
                run_dir=directory,
                model_dir=model if model.is_dir() else None,
                metrics=metrics if metrics.is_file() else None,
                facts=entry.facts if entry else {},
            )
        )
    return views


def evaluations(root: Path) -> dict[str, Path]:
    """The evaluation files of a pipeline, by stage name."""
    found = {name: root / name / "evaluation.json" for name in started(root).stages}
    return {name: path for name, path in found.items() if path.is_file()}
