"""`mezzotint evaluate`: run the evaluation that a file describes."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from evaluation.config import EvaluationConfig
from evaluation.evaluate import evaluate
from launch.progress import Reporter
from mezzotint.common.errors import UserError
from trainer.recipe import apply_override, explain, read_tree

EVALUATION: TypeAdapter[EvaluationConfig] = TypeAdapter(EvaluationConfig)


def evaluate_file(path: Path, overrides: Sequence[str], out: Path) -> None:
    """Run the evaluation of a YAML file with dotted overrides.

    Raises:
        UserError: an unreadable file, or an unknown key or impossible value.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    try:
        config = EVALUATION.validate_python(tree)
    except ValidationError as error:
        raise UserError(explain(error, str(path), tree)) from error
    with Reporter(out) as reporter:
        evaluate(config, out, reporter.report)
