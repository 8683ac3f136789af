"""One entry for the three kinds of evaluation."""

from pathlib import Path
from typing import assert_never

from evaluation.class_conditional import evaluate_class_conditional
from evaluation.config import (
    ClassConditionalConfig,
    EvaluationConfig,
    ReconstructionConfig,
    TextToImageConfig,
)
from evaluation.reconstruction import evaluate_reconstruction
from evaluation.result import EvaluationResult
from evaluation.stages import Progress
from evaluation.text_to_image import evaluate_text_to_image


def evaluate(
    config: EvaluationConfig, out: str | Path, progress: Progress | None = None
) -> EvaluationResult:
    """Run one evaluation; writes `evaluation.json`, `report.md` and image grids into `out`.

    Raises:
        UserError: something that is read is missing or does not fit.
    """
    match config:
        case TextToImageConfig():
            return evaluate_text_to_image(config, out, progress)
        case ReconstructionConfig():
            return evaluate_reconstruction(config, out, progress)
        case ClassConditionalConfig():
            return evaluate_class_conditional(config, out, progress)
        case _:
            assert_never(config)
