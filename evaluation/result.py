"""The result of an evaluation: metrics that never travel without their protocol."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from data_pipeline.text.cut_captions import shown
from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score
from mezzotint.common import files
from mezzotint.common.errors import UserError

FILE = "evaluation.json"
LISTED = 10
"""Captions that are cut, as far as a report lists them; evaluation.json has all."""
Kind = Literal[
    "text_to_image",
    "reconstruction",
    "class_conditional",
    "control",
    "cascade",
    "embedding_prior",
    "edits",
    "imagic",
]
Metric = Score | FrechetDistance | float
Metrics = Mapping[str, Mapping[str, Metric]]
"""By name and group: a part of the split, a guidance scale, a codebook, a number of candidates."""


@dataclass(frozen=True)
class Evaluated:
    """What one kind of evaluation has found."""

    protocol: Mapping[str, object]
    metrics: Metrics
    write_images: Callable[[Path], None]
    """Writes its image grids into a directory."""


@dataclass(frozen=True)
class EvaluationResult:
    """Everything that evaluation.json holds, for every kind of evaluation."""

    kind: Kind
    name: str
    protocol: Mapping[str, object]
    """What is needed to compute the same metrics: models, samplers, seeds, references, networks."""
    metrics: Metrics
    seconds: Mapping[str, float]
    """By stage of the evaluation."""

    @classmethod
    def read(cls, path: Path) -> "EvaluationResult":
        """Read an evaluation.json.

        Raises:
            UserError: it is missing, or not a result of this version.
        """
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise UserError(f"{path}: no such file; run the evaluation to its end") from error
        except (OSError, ValidationError) as error:
            raise UserError(f"{path}: is damaged; run the evaluation again") from error

    def write(self, directory: Path) -> None:
        """Write its summary report.md and, last and atomically, evaluation.json."""
        files.write_text(directory / "report.md", self.to_markdown())
        tree = asdict(self) | {"seconds": {key: round(s, 1) for key, s in self.seconds.items()}}
        files.write_json(directory / FILE, tree)

    def numbers(self) -> dict[str, float]:
        """Every number by `metric/group` or `metric/group/field`, as a tracker keeps them."""
        found = {f"seconds/{stage}": seconds for stage, seconds in self.seconds.items()}
        for name, groups in self.metrics.items():
            for group, metric in groups.items():
                fields = {} if isinstance(metric, int | float) else vars(metric)
                for field, value in fields.items():
                    if isinstance(value, int | float):
                        found[f"{name}/{group}/{field}"] = float(value)
                if isinstance(metric, int | float):
                    found[f"{name}/{group}"] = float(metric)
        return found

    def cut_captions(self) -> list[str]:
        """A sentence for each reader that does not read captions to their end, and the first."""
        cut = self.protocol.get("captions_cut")
        if not isinstance(cut, Mapping):
            return []
        sentences = []
        for role, lost in cut["lost"].items():
            listed = "; ".join(
                f"{shown(caption)} loses {shown(end)}" for caption, end in [*lost.items()][:LISTED]
            )
            more = f"; and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
            sentences.append(
                f"{len(lost)} of {cut['captions']} captions are longer than the {role} reads: "
                f"{listed}{more}"
            )
        return sentences

    def to_markdown(self) -> str:
        """A table with one line per metric and group."""
        lines = [
            f"# {self.name} ({self.kind.replace('_', ' ')})",
            "",
            "| metric | of | value | 95% interval | n |",
            "|---|---|---|---|---|",
        ]
        warnings: dict[str, None] = {}
        for name, groups in self.metrics.items():
            for group, metric in groups.items():
                match metric:
                    case Score():
                        cells = f"{metric.value:.4g} | {metric.low:.4g} to {metric.high:.4g} "
                        cells += f"| {metric.n}"
                    case FrechetDistance():
                        cells = f"{metric.value:.4g} | | {metric.counts}"
                        if metric.sample_size_warning:
                            warnings[metric.sample_size_warning] = None
                    case _:
                        cells = f"{metric:.4g} | | "
                lines.append(f"| {name} | {group} | {cells} |")
        warnings |= dict.fromkeys(self.cut_captions())
        lines += [line for warning in warnings for line in ("", f"Caution: {warning}.")]
        return "\n".join(lines) + "\n"


def by_metric(groups: Mapping[str, Mapping[str, Metric]]) -> Metrics:
    """Metrics by group and name as metrics by name and group."""
    found: dict[str, dict[str, Metric]] = {}
    for group, metrics in groups.items():
        for name, metric in metrics.items():
            found.setdefault(name, {})[group] = metric
    return found
