"""`mezzotint evaluate --sweep`: one evaluation under several settings, and the best of them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from evaluation.config import CascadeReportConfig, EvaluationConfig, TextToImageConfig
from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score
from evaluation.result import FILE as RESULT
from evaluation.result import EvaluationResult, Metric
from launch.evaluate import EVALUATION, evaluate_file, run_evaluation
from launch.train.local import is_main_process
from mezzotint.common import files
from mezzotint.common.errors import UserError
from trainer.recipe import apply_override, read_tree, validate

FILE = "sweep.json"
METRICS = {
    "text_to_image": "exact_match",
    "reconstruction": "psnr",
}
"""The metric that chooses, by kind; of others the first one that is measured."""


@dataclass(frozen=True)
class SweepCell:
    """One combination of values, by key, and what its evaluation has found."""

    settings: Mapping[str, str]
    result: EvaluationResult

    @property
    def name(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())


@dataclass(frozen=True)
class SweepResult:
    """All combinations, and the metric and group by which the best was chosen."""

    cells: Sequence[SweepCell]
    metric: str
    group: str

    @property
    def lower_is_better(self) -> bool:
        found = self.cells[0].result.metrics[self.metric][self.group]
        return isinstance(found, FrechetDistance)

    @property
    def best(self) -> SweepCell:
        """The first one of those with the best value."""
        sign = -1 if self.lower_is_better else 1
        return max(self.cells, key=lambda cell: sign * self.value(cell))

    def value(self, cell: SweepCell) -> float:
        return number(cell.result.metrics[self.metric][self.group])

    def to_text(self) -> str:
        """A table with a row for each combination, and the best one."""
        names = [
            name for name, groups in self.cells[0].result.metrics.items() if self.group in groups
        ]
        names.sort(key=lambda name: name != self.metric)
        rows = [["", *self.cells[0].settings, *names]]
        for cell in self.cells:
            mark = "*" if cell is self.best else ""
            found = [shown(cell.result.metrics[name].get(self.group)) for name in names]
            rows.append([mark, *cell.settings.values(), *found])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        order = "lowest" if self.lower_is_better else "highest"
        lines.append(f"* best: {self.best.name} ({order} {self.metric} of {self.group})")
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(self.tree(), indent=2)

    def tree(self) -> Mapping[str, object]:
        """Everything, for a file."""
        return {
            "chosen_by": f"{self.metric}/{self.group}",
            "best": dict(self.best.settings),
            "cells": [
                {
                    "settings": dict(cell.settings),
                    "value": self.value(cell),
                    "metrics": {
                        name: {group: metric_tree(each) for group, each in groups.items()}
                        for name, groups in cell.result.metrics.items()
                    },
                }
                for cell in self.cells
            ],
        }


def number(metric: Metric) -> float:
    """The value of a metric."""
    return float(metric) if isinstance(metric, int | float) else metric.value


def metric_tree(metric: Metric) -> object:
    """A metric for a file."""
    return metric if isinstance(metric, int | float) else vars(metric)


def shown(metric: Metric | None) -> str:
    """A metric for the table, with its interval."""
    match metric:
        case None:
            return ""
        case Score():
            return f"{metric.value:.4g} ({metric.low:.4g} to {metric.high:.4g})"
        case FrechetDistance():
            return f"{metric.value:.4g}"
        case _:
            return f"{metric:.4g}"


def parse_sweep(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Keys with their values, of words like `system.upsampler_sampling.level=0,0.02,0.05`.

    Raises:
        UserError: no key with values, or one given twice.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, separator, listed = word.partition("=")
        values = tuple(each for each in listed.split(",") if each)
        if not separator or not key or not values:
            raise UserError(
                f"--sweep {word}: expected KEY=VALUE,VALUE,... as in "
                "system.upsampler_sampling.level=0,0.02,0.05"
            )
        if key in axes:
            raise UserError(f"--sweep {word}: {key} is swept already; list all its values once")
        axes[key] = values
    return axes


def evaluate_command(
    path: Path,
    overrides: Sequence[str],
    out: Path,
    *,
    sweep: Sequence[str],
    metric: str | None,
    as_json: bool,
    device: str | None,
    processes: int | None,
) -> str:
    """What `mezzotint evaluate` prints when it is done.

    Raises:
        UserError: a metric without a sweep, or as in `evaluate_file` and `sweep_file`.
    """
    tracks = is_main_process()
    if sweep:
        found = sweep_file(
            path, overrides, sweep, out,
            metric=metric, device=device, processes=processes, tracks=tracks,
        )  # fmt: skip
        return found.to_json() if as_json else f"{found.to_text()}\n{out / FILE}: all of it"
    if metric is not None:
        raise UserError("--metric: chooses the best of a sweep; add --sweep, or leave it out")
    evaluate_file(path, overrides, out, device=device, processes=processes, tracks=tracks)
    result = out / RESULT
    return result.read_text("utf-8") if as_json else f"{result}: the metrics"


def sweep_file(
    path: Path,
    overrides: Sequence[str],
    sweep: Sequence[str],
    out: Path,
    *,
    metric: str | None = None,
    device: str | None = None,
    processes: int | None = None,
    tracks: bool = True,
) -> SweepResult:
    """Run the evaluation of a YAML file under every combination, each into a directory of `out`.

    Images for captions are generated for training captions alone: what is chosen on held-out ones
    is not held out any more. Nothing starts unless all combinations are valid.

    Raises:
        UserError: an unreadable file, an unknown key or impossible value, or no such metric.
    """
    axes = parse_sweep(sweep)
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    configs = [cell_config(path, overrides, each) for each in combinations]
    cells = []
    for index, (settings, config) in enumerate(zip(combinations, configs, strict=True)):
        directory = out / cell_directory(index, settings)
        result = run_evaluation(
            config, directory, device=device, processes=processes, tracks=tracks
        )
        cells.append(SweepCell(settings, result))
        if index == 0:
            chosen = chosen_metric(result, metric)  # a wrong name ends here
    found = SweepResult(cells, *chosen)
    if tracks:
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / FILE, found.tree())
    return found


def cell_directory(index: int, settings: Mapping[str, str]) -> str:
    """A name for a directory: the number of the cell and its values."""
    words = [f"{key.rpartition('.')[2]}={value}" for key, value in settings.items()]
    return re.sub(r"[^A-Za-z0-9._=-]", "_", "_".join([f"{index:02d}", *words]))[:100]


def cell_config(
    path: Path, overrides: Sequence[str], settings: Mapping[str, str]
) -> EvaluationConfig:
    """The evaluation under one combination, of training captions."""
    tree = read_tree(path, overrides)
    for key, value in settings.items():
        apply_override(tree, f"{key}={value}")
    config: EvaluationConfig = validate(EVALUATION.validate_python, tree, str(path))
    if isinstance(config, CascadeReportConfig):
        raise UserError(
            "kind: a cascade's report describes inputs and chooses nothing; sweep an evaluation of "
            "kind text_to_image"
        )
    if not isinstance(config, TextToImageConfig):
        return config
    if any(each.partition("=")[0] == "limit.test" for each in overrides):
        raise UserError(
            "limit.test: --sweep chooses settings on training captions alone; leave it out, and "
            "evaluate the best settings without --sweep"
        )
    if config.limit.train == 0:
        raise UserError("limit.train: --sweep needs training captions; set it above 0")
    limit = config.limit.model_copy(update={"test": 0})
    return config.model_copy(update={"limit": limit})


def chosen_metric(result: EvaluationResult, wanted: str | None) -> tuple[str, str]:
    """Name and group of the metric that chooses; `wanted` is a name or NAME/GROUP.

    Raises:
        UserError: it was not measured.
    """
    name, _, group = (wanted or METRICS.get(result.kind, "")).partition("/")
    if wanted is None and name not in result.metrics:
        name = next(iter(result.metrics))
    groups = result.metrics.get(name, {})
    if not groups or (group and group not in groups):
        listed = [f"{each}/{part}" for each, parts in result.metrics.items() for part in parts]
        raise UserError(f"--metric {wanted}: there is no such metric; choose {', '.join(listed)}")
    return name, group or next(iter(groups))
