"""The section on class-conditional models: class accuracy by a linear probe."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluation.class_conditional import GRID
from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score
from launch.report.charts import Point, Series, line_chart
from launch.report.evaluations import Cell, Evaluation, cell, data_uri

BASELINES = {"real_test": "real, held out", "chance": "chance"}


@dataclass(frozen=True)
class Row:
    """The images of one guidance scale, or a baseline."""

    label: str
    accuracy: Cell
    by_class: Sequence[str]
    distance: str
    network_calls: str
    baseline: bool


@dataclass(frozen=True)
class ClassConditional:
    """One evaluated model; `grid` is a data URI, `chart` shows several guidance scales."""

    evaluation: Evaluation
    classes: Sequence[str]
    rows: Sequence[Row]
    best: Row
    chart: Markup | None
    grid: str | None


def class_conditional_table(evaluation: Evaluation) -> ClassConditional:
    """The table of one evaluated model."""
    metrics = evaluation.result.metrics
    prefix = "accuracy/"
    classes = [name.removeprefix(prefix) for name in metrics if name.startswith(prefix)]
    accuracies = metrics["accuracy"]
    scales = {
        float(group.removeprefix("guidance ")): score
        for group, score in accuracies.items()
        if group not in BASELINES and isinstance(score, Score)
    }
    rows = [_row(evaluation, f"guidance {scale:g}", classes) for scale in scales]
    best = max(zip(scales.values(), rows, strict=True), key=lambda pair: pair[0].value)[1]
    rows += [_row(evaluation, group, classes) for group in BASELINES if group in accuracies]
    return ClassConditional(
        evaluation=evaluation,
        classes=classes,
        rows=rows,
        best=best,
        chart=_chart(scales) if len(scales) > 1 else None,
        grid=data_uri(evaluation.directory, GRID),
    )


def _row(evaluation: Evaluation, group: str, classes: Sequence[str]) -> Row:
    distances = [
        f"{name} {metric.value:.1f}, {metric.counts}"
        for name, groups in evaluation.result.metrics.items()
        if isinstance(metric := groups.get(group), FrechetDistance)
    ]
    by_class = [evaluation.metric(f"accuracy/{name}", group) for name in classes]
    calls = evaluation.metric("network_calls", group)
    return Row(
        label=BASELINES.get(group, group),
        accuracy=cell(evaluation.metric("accuracy", group), percent=True) or Cell("not measured"),
        by_class=[f"{100 * each:.0f}%" if isinstance(each, float) else "–" for each in by_class],
        distance="; ".join(distances) or "–",
        network_calls="–" if calls is None else f"{calls:g}",
        baseline=group in BASELINES,
    )


def _chart(scales: dict[float, Score]) -> Markup:
    points = [
        Point(scale, 100 * score.value, 100 * score.low, 100 * score.high)
        for scale, score in sorted(scales.items())
    ]
    return line_chart(
        "accuracy over guidance",
        [Series("accuracy", points)],
        x_label="guidance",
        y_label="accuracy, %",
        x_ticks=[point.x for point in points],
        y_limits=(0, 100),
    )
