"""One entry for all kinds of evaluation."""

import logging
import math
from pathlib import Path
from typing import assert_never

import torch

from evaluation.cascade import evaluate_cascade
from evaluation.class_conditional import evaluate_class_conditional
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
from evaluation.control import evaluate_control
from evaluation.edits import evaluate_edits
from evaluation.embedding_prior import evaluate_embedding_prior
from evaluation.imagic import evaluate_imagic
from evaluation.reconstruction import evaluate_reconstruction
from evaluation.result import EvaluationResult
from evaluation.stages import Progress, Stages
from evaluation.text_to_image import evaluate_text_to_image
from mezzotint.common.errors import UserError
from mezzotint.inference.process_group import ProcessGroup
from mezzotint.inference.runtime import Runtime

log = logging.getLogger(__name__)


def evaluate(
    config: EvaluationConfig,
    out: str | Path,
    *,
    device: str | torch.device = "cpu",
    group: ProcessGroup | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Run one evaluation; writes `evaluation.json`, `report.md` and image grids into `out`.

    The processes of a group share the work and have the same result; the main one writes.

    Raises:
        UserError: something that is read is missing or does not fit, or a sample, a feature or a
            metric is not finite; nothing is written then.
    """
    runtime = Runtime.of(device, config.precision, group)
    stages = Stages(progress)
    match config:
        case TextToImageConfig():
            found = evaluate_text_to_image(config, runtime, stages)
        case ReconstructionConfig():
            found = evaluate_reconstruction(config, runtime, stages)
        case ClassConditionalConfig():
            found = evaluate_class_conditional(config, runtime, stages)
        case ControlEvaluationConfig():
            found = evaluate_control(config, runtime, stages)
        case CascadeReportConfig():
            found = evaluate_cascade(config, runtime, stages)
        case EmbeddingPriorConfig():
            found = evaluate_embedding_prior(config, runtime, stages)
        case EditsConfig():
            found = evaluate_edits(config, runtime, stages)
        case ImagicEvaluationConfig():
            found = evaluate_imagic(config, runtime, stages)
        case _:
            assert_never(config)
    result = EvaluationResult(
        config.kind, config.name, found.protocol, found.metrics, stages.seconds
    )
    require_finite_metrics(result)
    if runtime.group.is_main:
        directory = Path(out)
        directory.mkdir(parents=True, exist_ok=True)
        found.write_images(directory)
        result.write(directory)
        for sentence in result.cut_captions():
            log.warning("%s", sentence)
    return result


def require_finite_metrics(result: EvaluationResult) -> None:
    """Refuse a result with a number that is not finite.

    Raises:
        UserError: with the first such metric.
    """
    for name, value in result.numbers().items():
        if not math.isfinite(value):
            raise UserError(
                f"{result.name}: the metric {name} is {value}; look at the images of the model "
                "before evaluating it"
            )
