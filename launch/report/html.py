"""The result page of a pipeline run: one self-contained HTML file that shows what is missing."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.result import Kind
from launch.report.cascade import cascade_inputs
from launch.report.charts import Point, Series, line_chart, thin
from launch.report.class_conditional import class_conditional_table
from launch.report.control import control_result
from launch.report.embeddings import edits_table, imagic_table, prior_table
from launch.report.evaluations import Problem, read
from launch.report.reconstruction import reconstruction_row
from launch.report.text_to_image import text_to_image_section
from mezzotint.common import files


@dataclass(frozen=True)
class StageView:
    """What the page shows of one stage; `seconds` is None while it is not finished."""

    name: str
    kind: str
    run_dir: Path
    seconds: float | None
    facts: Mapping[str, str]


def write_page(run_dir: Path, title: str, stages: Sequence[StageView]) -> Path:
    """Write `run_dir/index.html`.

    The file carries its images and style inside and links to nothing but directories of the run.
    """
    found = [read(stage.name, stage.run_dir) for stage in of_kind(stages, "evaluate")]
    by_kind = {
        kind: [each for each in found if not isinstance(each, Problem) and each.result.kind == kind]
        for kind in get_args(Kind)
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html").render(
        title=title,
        problems=[each for each in found if isinstance(each, Problem)],
        generated=text_to_image_section(by_kind["text_to_image"]),
        reconstructions=[reconstruction_row(each) for each in by_kind["reconstruction"]],
        priors=[prior_table(each) for each in by_kind["embedding_prior"]],
        edits=[edits_table(each) for each in by_kind["edits"]],
        imagic=[imagic_table(each) for each in by_kind["imagic"]],
        cascades=[cascade_inputs(each) for each in by_kind["cascade"]],
        controls=[control_result(each) for each in by_kind["control"]],
        class_models=[class_conditional_table(each) for each in by_kind["class_conditional"]],
        curves=[(stage, *loss_chart(stage)) for stage in of_kind(stages, "train")],
        stages=stages,
        columns=list(dict.fromkeys(name for stage in stages for name in stage.facts)),
        link=lambda path: relative(path, run_dir),
        duration=duration,
        total=sum(stage.seconds or 0.0 for stage in stages),
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    files.write_text(run_dir / "index.html", html)
    return run_dir / "index.html"


def of_kind(stages: Sequence[StageView], kind: str) -> list[StageView]:
    """The stages of one kind, in their order."""
    return [stage for stage in stages if stage.kind == kind]


def loss_chart(stage: StageView) -> tuple[Markup | None, int]:
    """A stage's finite losses over its steps, None if there are none; how many are not finite."""
    series, others = loss_series(stage.run_dir / "metrics.jsonl")
    if not series:
        return None, others
    values = [point.y for line in series for point in line.points]
    spans_decades = min(values) > 0 and max(values) > 8 * min(values)
    chart = line_chart(
        f"losses of {stage.name}",
        series,
        x_label="steps",
        y_label=series[0].label if len(series) == 1 else "loss",
        y_scale="log" if spans_decades else "linear",
    )
    return chart, others


def loss_series(metrics: Path) -> tuple[list[Series], int]:
    """The losses of a metrics.jsonl, by name, and the number of those that are not finite.

    A line that was cut short is left out.
    """
    found: dict[str, list[Point]] = {}
    others = 0
    for line in files.read_lines(metrics):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        values = entry.get("metrics", {}) | entry.get("non_finite", {})
        losses = {name: value for name, value in values.items() if name.split("/")[0] == "loss"}
        kept = files.finite(losses)
        others += len(losses) - len(kept)
        for name, value in kept.items():
            found.setdefault(name, []).append(Point(float(entry["step"]), value))
    return [Series(name, thin(points)) for name, points in sorted(found.items())], others


def relative(path: Path, root: Path) -> str:
    """A link from the page to a path, percent-encoded."""
    return quote(os.path.relpath(path, root).replace(os.sep, "/"))


def duration(seconds: float | None) -> str:
    """Minutes and seconds."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
