"""What each kind of stage does."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import assert_never

from data_pipeline.config import DataConfig
from data_pipeline.hints.config import DetectorConfig
from data_pipeline.manifest import Manifest
from data_pipeline.sets.write import write_manifest
from launch.pipeline.config import (
    DeriveStage,
    EvaluateStage,
    PageStage,
    StageConfig,
    TokenizerStage,
    TrainStage,
    stage_recipe,
)
from launch.progress import Reporter
from mezzotint.common.errors import UserError
from mezzotint.common.files import write_bytes
from trainer.tracking.run_log import TrackingConfig


def execute_stage(
    stage: StageConfig,
    directory: Path,
    tracking: TrackingConfig | None,
    reporter: Reporter,
    root: Path,
) -> dict[str, str]:
    """Run a resolved stage; returns facts about it for the result page."""
    directory.mkdir(parents=True, exist_ok=True)
    match stage:
        case TokenizerStage():
            return make_tokenizer(stage, directory, reporter)
        case TrainStage():
            return train(stage, directory, tracking, reporter)
        case DeriveStage():
            return derive(stage, directory, reporter)
        case EvaluateStage():
            return evaluate(stage, directory, reporter)
        case PageStage():
            return page(stage, root)
        case _:
            assert_never(stage)


def make_tokenizer(stage: TokenizerStage, directory: Path, reporter: Reporter) -> dict[str, str]:
    """Train the tokenizer on the selected captions."""
    from data_pipeline.dataset import open_dataset
    from data_pipeline.text.train_tokenizer import TokenizerOptions
    from launch.data.tokenizer import train_on

    options = TokenizerOptions(stage.vocab, stage.character_coverage, stage.byte_fallback)
    trained = train_on(open_dataset(stage.data), options, reporter.callback("captions"))
    model = directory / "model"
    model.mkdir(exist_ok=True)
    write_bytes(model / "tokenizer.model", trained.content)
    account = {"left out or changed": "; ".join(trained.notes())} if trained.notes() else {}
    return {"pieces": str(stage.vocab), "captions": f"{trained.captions:,}", **account}


def train(
    stage: TrainStage, directory: Path, tracking: TrackingConfig | None, reporter: Reporter
) -> dict[str, str]:
    """Train a recipe in the stage's directory."""
    from launch.train.local import train as train_recipe
    from trainer.run import RunDirectory
    from trainer.session import read_summary

    recipe = stage_recipe(stage)
    run = RunDirectory(directory)
    train_recipe(recipe, run, tracking, reporter)
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
    """Write the codes or latents of a set, or its hints."""
    from launch.processes import devices
    from mezzotint.inference.encode import encode_set

    out = stage.out or str(directory / "set")
    if stage.hint is not None:
        return derive_hints(stage.data, stage.hint, out, directory, reporter)
    if stage.text_encoder is not None:
        return derive_text_features(stage, out, directory, reporter)
    if stage.clip is not None:
        return derive_embeddings(stage, out, directory, reporter)
    assert stage.model is not None, "one of the four, by the stage's settings"
    manifest = encode_set(
        stage.data,
        stage.model,
        out,
        batch=stage.batch,
        latents=stage.latents,
        flip=stage.flip,
        device=devices(None, 1)[0],
        progress=reporter.callback("samples"),
    )
    manifest = _recorded(manifest, directory)
    facts = {"samples": f"{manifest.sample_count:,}", "encoder": (manifest.encoder or "")[:12]}
    if manifest.latents is not None:
        facts["mean of latents"] = f"{manifest.latents.mean:.6g}"
        facts["scale of latents"] = f"{manifest.latents.scale:.6g}"
    return facts


def _recorded(manifest: Manifest | None, directory: Path) -> Manifest:
    """The manifest of a derived set; the stage's directory gets a copy, wherever the set lies."""
    assert manifest is not None, "one process writes"
    write_manifest(str(directory), manifest)
    return manifest


def derive_hints(
    data: DataConfig, detector: DetectorConfig, out: str, directory: Path, reporter: Reporter
) -> dict[str, str]:
    """Write the hints of a set."""
    from data_pipeline.hints.derive import derive_hints as derive

    manifest = _recorded(
        derive(data, out, detector, progress=reporter.callback("hints")), directory
    )
    return {"samples": f"{manifest.sample_count:,}", "detector": str(detector.record)}


def derive_text_features(
    stage: DeriveStage, out: str, directory: Path, reporter: Reporter
) -> dict[str, str]:
    """Write the text features of a set."""
    from launch.processes import devices
    from mezzotint.inference.encoding.captions import encode_captions

    assert stage.text_encoder is not None, "the caller's stage has one"
    manifest = encode_captions(
        stage.data,
        stage.text_encoder,
        out,
        dtype=stage.text_dtype,
        batch=stage.batch,
        device=devices(None, 1)[0],
        progress=reporter.callback("samples"),
    )
    manifest = _recorded(manifest, directory)
    return {"samples": f"{manifest.sample_count:,}", "features": stage.text_dtype}


def derive_embeddings(
    stage: DeriveStage, out: str, directory: Path, reporter: Reporter
) -> dict[str, str]:
    """Write the CLIP embeddings of a set."""
    from launch.processes import devices
    from mezzotint.inference.encoding.embeddings import EmbeddingOptions, encode_embeddings

    assert stage.clip is not None, "the caller's stage has one"
    manifest = encode_embeddings(
        stage.data,
        stage.clip,
        out,
        EmbeddingOptions(stage.normalization, stage.text_features, stage.text_dtype, stage.flip),
        batch=stage.batch,
        device=devices(None, 1)[0],
        progress=reporter.callback("samples"),
    )
    manifest = _recorded(manifest, directory)
    assert manifest.embeddings is not None, "written with the set"
    record = manifest.embeddings
    return {
        "samples": f"{manifest.sample_count:,}",
        "CLIP": record.digest[:12],
        "normalisation": record.scaling.kind,
    }


def evaluate(stage: EvaluateStage, directory: Path, reporter: Reporter) -> dict[str, str]:
    """Run one evaluation."""
    import torch

    from launch.evaluate import evaluate_in_processes
    from trainer import distributed

    # on a CPU the stage has its own cores; the ranks of a job share the work in any case
    shares_cores = not torch.cuda.is_available() and distributed.world_from_environment().size == 1
    evaluate_in_processes(
        stage.evaluation,
        directory,
        reporter.report,
        processes=stage.cores if shares_cores else None,
    )
    return {"evaluation": stage.evaluation.kind.replace("_", " ")}


def page(stage: PageStage, root: Path) -> dict[str, str]:
    """Write the result page of the pipeline run."""
    if find_spec("matplotlib") is None:
        raise UserError("page: needs matplotlib; run `pip install -c constraints.txt '.[eval]'`")
    from launch.pipeline.state import stage_views
    from launch.report.html import write_page

    write_page(root, stage.title, stage_views(root))
    return {}


def stage_artifacts(stage: StageConfig, directory: Path, root: Path) -> Mapping[str, Path]:
    """Files that MLflow keeps of a finished stage without a training loop, by name."""
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
