"""Evaluation files: of a system that draws, or of an autoencoder."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ValidationError

from evaluation.config import EvaluationConfig
from evaluation.reconstruction import ReconstructionEvaluation, evaluate_reconstruction
from evaluation.run import evaluate
from launch.errors import LaunchError
from launch.progress import Reporter
from trainer.recipe import apply_override, explain, read_tree


def judge_file(path: Path, overrides: Sequence[str], out: Path) -> None:
    """Run the evaluation that a file describes; one that names an `autoencoder` judges that.

    Raises:
        LaunchError, TrainError: an unreadable file, or an unknown key or impossible value.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    kind: type[BaseModel] = EvaluationConfig
    if "autoencoder" in tree:
        kind = ReconstructionEvaluation
    try:
        loaded = kind.model_validate(tree)
    except ValidationError as error:
        raise LaunchError(explain(error, str(path), tree)) from error
    with Reporter(out) as reporter:
        match loaded:
            case ReconstructionEvaluation():
                evaluate_reconstruction(loaded, out, reporter.phases)
            case EvaluationConfig():
                evaluate(loaded, str(out), reporter.phases)
