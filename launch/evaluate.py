"""`mezzotint evaluate`: run the evaluation that a file describes, in one or several processes."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch
from pydantic import TypeAdapter

from evaluation.config import (
    CascadeReportConfig,
    ClassConditionalConfig,
    ControlEvaluationConfig,
    EditsConfig,
    EmbeddingPriorConfig,
    EvaluationConfig,
    ImagicEvaluationConfig,
    ReconstructionConfig,
    TextToImageConfig,
)
from evaluation.evaluate import evaluate
from evaluation.result import EvaluationResult
from evaluation.stages import Progress
from launch.processes import run_in_processes
from launch.progress import Reporter
from mezzotint.inference.process_group import ProcessGroup
from trainer.recipe import read_tree, validate
from trainer.run import RunDirectory
from trainer.tracking.environment import tracking_from_environment
from trainer.tracking.run_log import RECORD_FILE, RunInfo, TrackingConfig
from trainer.tracking.tracker import Tracker

EVALUATION: TypeAdapter[EvaluationConfig] = TypeAdapter(EvaluationConfig)
UNLIMITED = 1000
"""Images that an evaluation without a limit is taken to have when processes are counted."""


def evaluate_file(
    path: Path,
    overrides: Sequence[str],
    out: Path,
    *,
    device: str | None = None,
    processes: int | None = None,
    tracks: bool = True,
) -> None:
    """Run the evaluation of a YAML file with dotted overrides; one of its processes `tracks` it.

    Raises:
        UserError: an unreadable file, or an unknown key or impossible value.
    """
    config = validate(EVALUATION.validate_python, read_tree(path, overrides), str(path))
    run_evaluation(config, out, device=device, processes=processes, tracks=tracks)


def run_evaluation(
    config: EvaluationConfig,
    out: Path,
    *,
    device: str | None = None,
    processes: int | None = None,
    tracks: bool = True,
) -> EvaluationResult:
    """Run one evaluation, with its progress on the terminal; one of its processes `tracks` it."""
    tracking = tracking_from_environment() if tracks else None
    with tracked_evaluation(config, out, tracking) as tracker, Reporter(out) as reporter:
        result = evaluate_in_processes(
            config, out, reporter.report, device=device, processes=processes
        )
        if tracker:
            tracker.log(0, result.numbers())
            tracker.close("FINISHED", {"evaluation": out})
        return result


@contextmanager
def tracked_evaluation(
    config: EvaluationConfig, out: Path, tracking: TrackingConfig | None
) -> Iterator[Tracker | None]:
    """An MLflow run of the evaluation, where there is a store.

    Its record is in `out/tracking`; another evaluation into `out` is another run.
    """
    if tracking is None:
        yield None
        return
    directory = RunDirectory(out / "tracking")
    if (directory.path / RECORD_FILE).is_file():
        shutil.rmtree(directory.path)
    directory.path.mkdir(parents=True, exist_ok=True)
    settings = config.model_dump(mode="json")
    info = RunInfo(out.resolve().name, settings, {"mezzotint.kind": "evaluate"})
    tracker = Tracker(directory, tracking, info, writes=True, samples=False)
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.close("KILLED")
        raise
    except BaseException as error:
        tracker.close("FAILED", error=error)
        raise


def evaluate_in_processes(
    config: EvaluationConfig,
    out: Path,
    progress: Progress,
    *,
    device: str | None = None,
    processes: int | None = None,
) -> EvaluationResult:
    """Run one evaluation on a device, or on all GPUs; see `run_in_processes`."""
    images = image_count(config)
    return run_in_processes(
        _Evaluation(config, out, progress),
        device=device,
        processes=processes,
        blocks=-(-images // config.batch),
        images=images,
    )


def image_count(config: EvaluationConfig) -> int:
    """About how many images are generated or reconstructed."""
    match config:
        case TextToImageConfig():
            limits = (config.limit.test, config.limit.train)
            captions = sum(UNLIMITED if limit is None else limit for limit in limits)
            return captions * config.samples_per_caption
        case ReconstructionConfig():
            return config.images.limit or UNLIMITED
        case ClassConditionalConfig():
            return config.classes.count * config.samples_per_class * len(config.guidance_scales)
        case ControlEvaluationConfig():
            return 2 * (config.limit or UNLIMITED) * config.samples_per_image
        case CascadeReportConfig():
            return len(config.system.stage_sampling) * (config.limit or UNLIMITED)
        case EmbeddingPriorConfig():
            return config.limit or UNLIMITED
        case EditsConfig():
            edited = config.trials * len(config.replacements) * len(config.thetas)
            return config.variations + edited
        case ImagicEvaluationConfig():
            return config.edits * (len(config.etas) + 1)
        case _:
            assert_never(config)


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation as every process runs it; only the one that starts it reports progress."""

    config: EvaluationConfig
    out: Path
    progress: Progress | None

    def __call__(self, device: torch.device, group: ProcessGroup) -> EvaluationResult:
        return evaluate(self.config, self.out, device=device, group=group, progress=self.progress)

    def __reduce__(self) -> tuple[type["_Evaluation"], tuple[EvaluationConfig, Path, None]]:
        return type(self), (self.config, self.out, None)
