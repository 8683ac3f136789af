"""Evaluation files: of a system that draws, of an autoencoder, or of a model of classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from pydantic import TypeAdapter, ValidationError

from evaluation.classes import evaluate_classes
from evaluation.config import (
    AnyEvaluation,
    ClassEvaluation,
    EvaluationConfig,
    ReconstructionEvaluation,
)
from evaluation.reconstruction import evaluate_reconstruction
from evaluation.text_to_image import Progress, evaluate
from launch.progress import Reporter
from mezzotint.common.errors import UserError
from trainer.recipe import apply_override, explain, read_tree

EVALUATION: TypeAdapter[AnyEvaluation] = TypeAdapter(AnyEvaluation)


def judge_file(path: Path, overrides: Sequence[str], out: Path) -> None:
    """Run the evaluation that a file describes; one that names an `autoencoder` judges that.

    Raises:
        UserError: an unreadable file, or an unknown key or impossible value.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    try:
        loaded = EVALUATION.validate_python(tree)
    except ValidationError as error:
        raise UserError(explain(error, str(path), tree)) from error
    with Reporter(out) as reporter:
        judge(loaded, out, reporter.report)


def judge(evaluation: AnyEvaluation, out: Path, progress: Progress) -> None:
    """Run one evaluation; leaves `evaluation.json` in `out`, whatever is judged."""
    match evaluation:
        case ReconstructionEvaluation():
            evaluate_reconstruction(evaluation, out, progress)
        case ClassEvaluation():
            evaluate_classes(evaluation, out, progress)
        case EvaluationConfig():
            evaluate(evaluation, out, progress)
        case _:
            assert_never(evaluation)
