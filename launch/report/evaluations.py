"""The evaluations of a page as found on disk, and how their metrics are written."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score
from evaluation.result import FILE, EvaluationResult, Metric
from evaluation.samples import INDEX
from mezzotint.common.errors import UserError
from trainer.recipe import flatten


@dataclass(frozen=True)
class Evaluation:
    """The result of a stage, the directory with its images, and the index of its samples."""

    stage: str
    result: EvaluationResult
    directory: Path
    samples: Sequence[Mapping[str, Any]]

    @property
    def protocol(self) -> list[tuple[str, str]]:
        """Dotted keys and values."""
        values = flatten(self.result.protocol).items()
        return [(key, each if isinstance(each, str) else json.dumps(each)) for key, each in values]

    def metric(self, name: str, group: str) -> Metric | None:
        """A metric's value; None where it was not measured."""
        return self.result.metrics.get(name, {}).get(group)

    def setting(self, *path: str) -> object:
        """A value of the protocol; None where any key of its path is missing."""
        node: object = self.result.protocol
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node


@dataclass(frozen=True)
class Problem:
    """Why there is no result of a stage."""

    stage: str
    reason: str


@dataclass(frozen=True)
class Cell:
    """A metric with its interval or its counts; `bar` is (value, low, high) in percent."""

    value: str
    detail: str = ""
    bar: tuple[float, float, float] | None = None


def read(stage: str, path: Path) -> Evaluation | Problem:
    """Read an evaluation.json, or that of a directory."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        return Problem(stage, f"{file.name} is missing: the evaluation has not finished")
    try:
        result, index = EvaluationResult.read(file), file.parent / INDEX
        lines = index.read_text(encoding="utf-8").splitlines() if index.is_file() else []
        return Evaluation(stage, result, file.parent, [json.loads(line) for line in lines])
    except (UserError, OSError, ValueError):
        return Problem(stage, "its files are damaged: run the evaluation again")


def cell(metric: Metric | None, *, percent: bool = False) -> Cell | None:
    """A metric for a table; None where it was not measured."""
    match metric:
        case None:
            return None
        case Score():
            scale, unit = (100, "%") if percent else (1, "")
            value, low, high = (scale * each for each in (metric.value, metric.low, metric.high))
            detail = f"{low:.1f} to {high:.1f}, n = {metric.n}"
            return Cell(f"{value:.1f}{unit}", detail, (value, low, high) if percent else None)
        case FrechetDistance():
            return Cell(f"{metric.value:.2f}", metric.counts)
        case _:
            return Cell(f"{100 * metric:.1f}%" if percent else f"{metric:g}")


def data_uri(directory: Path, name: str) -> str | None:
    """A PNG below `directory` as a data URI; None if it is not there or lies elsewhere."""
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()) or not path.is_file():
        return None
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
