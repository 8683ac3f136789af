"""The section on controls: how well samples follow their hints, with the control and without."""

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.control import GRID
from launch.report.evaluations import Cell, Evaluation, cell, data_uri


@dataclass(frozen=True)
class ControlResult:
    """One evaluated control; `grid` is a data URI."""

    evaluation: Evaluation
    metric: str
    rows: Sequence[tuple[str, Cell]]
    changed: str
    grid: str | None


def control_result(evaluation: Evaluation) -> ControlResult:
    """The table of one evaluated control."""
    metrics = evaluation.result.metrics
    metric = next(name for name, groups in metrics.items() if "controlled" in groups)
    rows = [
        (group, found)
        for group in ("controlled", "uncontrolled")
        if (found := cell(metrics[metric].get(group), percent=True)) is not None
    ]
    ratio = cell(evaluation.metric(f"{metric}_ratio", "controlled to uncontrolled"))
    rows += [] if ratio is None else [("controlled to uncontrolled", ratio)]
    (group, changed), *_ = metrics["changed_at_scale_0"].items()
    return ControlResult(
        evaluation=evaluation,
        metric=metric.replace("_", " "),
        rows=rows,
        changed=f"{changed:g} {group}",
        grid=data_uri(evaluation.directory, GRID),
    )
