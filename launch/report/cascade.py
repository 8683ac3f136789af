"""The section on cascades: what super-resolution stages read, generated against real."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.cascade import CHART, GRID
from evaluation.metrics.intervals import Score
from launch.report.evaluations import Cell, Evaluation, data_uri

DIFFERENCES = {
    "brightness_shift": "brightness, levels of 255",
    "red_shift": "red, levels of 255",
    "green_shift": "green, levels of 255",
    "blue_shift": "blue, levels of 255",
    "contrast_shift": "contrast inside an image, levels of 255",
    "low_frequencies_db": "power of low frequencies, dB",
    "middle_frequencies_db": "power of middle frequencies, dB",
    "high_frequencies_db": "power of high frequencies, dB",
}


@dataclass(frozen=True)
class CascadeInputs:
    """One evaluated cascade: a row per statistic with a cell per stage; images are data URIs."""

    evaluation: Evaluation
    stages: Sequence[str]
    """The stages' settings, and their levels where the system has them."""
    rows: Sequence[tuple[str, Sequence[Cell | None]]]
    images: Mapping[str, str | None]
    """By what they show; None where the file is missing."""


def cascade_inputs(evaluation: Evaluation) -> CascadeInputs:
    """The table of one evaluated cascade."""
    metrics = evaluation.result.metrics
    settings = list(dict.fromkeys(each for name in DIFFERENCES for each in metrics.get(name, {})))
    return CascadeInputs(
        evaluation=evaluation,
        stages=[_name(evaluation, each) for each in settings],
        rows=[
            (label, [_difference(evaluation, name, each) for each in settings])
            for name, label in DIFFERENCES.items()
            if name in metrics
        ],
        images={
            "inputs of both kinds": data_uri(evaluation.directory, GRID),
            "spectra": data_uri(evaluation.directory, CHART),
        },
    )


def _name(evaluation: Evaluation, setting: str) -> str:
    level = evaluation.setting("system", "sampling", setting, "level")
    return f"{setting}, level {level:g}" if isinstance(level, int | float) else setting


def _difference(evaluation: Evaluation, name: str, setting: str) -> Cell | None:
    """With its sign; None where it was not measured."""
    metric = evaluation.metric(name, setting)
    if not isinstance(metric, Score):
        return None
    detail = f"{metric.low:+z.1f} to {metric.high:+z.1f}, n = {metric.n}"
    return Cell(f"{metric.value:+z.1f}", detail)
