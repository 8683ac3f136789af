"""What each kind of stage does, in a process of its own."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

from launch.pipeline.config import (
    DeriveStage,
    EvaluateStage,
    PageStage,
    Stage,
    TokenizerStage,
    TrainStage,
    recipe_of,
)
from launch.progress import Reporter
from mezzotint.common.files import write_bytes
from trainer.tracking.run_log import TrackingConfig

log = logging.getLogger(__name__)


def execute(
    stage: Stage, directory: Path, link: TrackingConfig | None, reporter: Reporter, root: Path
) -> dict[str, str]:
    """Run one resolved stage to its end; returns facts about it for people."""
    directory.mkdir(parents=True, exist_ok=True)
    match stage:
        case TokenizerStage():
            return make_tokenizer(stage, directory)
        case TrainStage():
            return train(stage, directory, link, reporter)
        case DeriveStage():
            return derive(stage, directory, reporter)
        case EvaluateStage():
            return evaluate(stage, directory, reporter)
        case PageStage():
            return page(stage, root)
        case _:
            assert_never(stage)


def make_tokenizer(stage: TokenizerStage, directory: Path) -> dict[str, str]:
    """Train the tokenizer on the selected captions."""
    from data_pipeline.dataset import open_dataset
    from data_pipeline.text.tokenizer import Tokenizer

    captions = open_dataset(stage.data).captions()
    model = directory / "model"
    model.mkdir(exist_ok=True)
    write_bytes(model / "tokenizer.model", Tokenizer.train(captions, stage.vocab))
    return {"pieces": str(stage.vocab), "captions": f"{len(captions):,}"}


def train(
    stage: TrainStage, directory: Path, link: TrackingConfig | None, reporter: Reporter
) -> dict[str, str]:
    """Train a recipe in the stage's directory."""
    from launch.train.local import train as train_recipe
    from trainer.run import RunDirectory
    from trainer.session import read_summary

    recipe = recipe_of(stage)
    run = RunDirectory(directory)
    train_recipe(recipe, run, link, reporter)
    summary = read_summary(run)
    return {
        "steps": f"{summary['steps']:,}",
        "batch": str(recipe.batch),
        "parameters": f"{summary['parameters']:,}",
        "ZeRO": str(summary["zero"]),
        "precision": str(summary["precision"]),
        "processes": str(summary["processes"]),
    }


def derive(stage: DeriveStage, directory: Path, reporter: Reporter) -> dict[str, str]:
    """Write the image tokens, or latents, of a set."""
    from data_pipeline.manifest import write_manifest
    from mezzotint.inference.encode import derive_with

    out = stage.out or str(directory / "set")
    manifest = derive_with(stage.data, stage.model, out, stage.batch, reporter.counted("samples"))
    write_manifest(str(directory), manifest)  # what was made, also where the set lies elsewhere
    samples = sum(len(shard.samples) for shard in manifest.shards)
    return {"samples": f"{samples:,}", "encoder": (manifest.encoder or "")[:12]}


def evaluate(stage: EvaluateStage, directory: Path, reporter: Reporter) -> dict[str, str]:
    """Judge a system, an autoencoder or a model of classes from its model directories."""
    from evaluation.config import ReconstructionEvaluation
    from launch.evaluate import judge

    judge(stage.evaluation, directory, reporter.phases)
    if isinstance(stage.evaluation, ReconstructionEvaluation):
        return {"judged": "reconstructions"}
    return {"system": stage.evaluation.system.kind}


def page(stage: PageStage, root: Path) -> dict[str, str]:
    """Write the result page of the whole run."""
    from launch.pipeline.views import evaluations, stage_views
    from launch.report.html import write_page

    write_page(root, stage.title, stage_views(root), evaluations(root))
    return {}


def artifacts(stage: Stage, directory: Path, root: Path) -> Mapping[str, Path]:
    """What MLflow keeps of a finished stage that does not track itself."""
    match stage:
        case TokenizerStage():
            return {"model": directory / "model"}
        case DeriveStage():
            return {"manifest": directory / "manifest.json"}
        case EvaluateStage():
            return {"evaluation": directory}
        case PageStage():
            return {"page": root / "index.html"}
        case TrainStage():
            return {}
        case _:
            assert_never(stage)
