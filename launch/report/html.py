"""The result page of a pipeline run: one self-contained HTML file that hides no gap."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from launch.report import svg_charts
from launch.report.class_section import classes
from launch.report.reconstruction_section import embedded, reconstructions
from launch.report.svg_charts import Point, Series
from mezzotint.common.files import write_text

HELD_OUT_SHOWN, TRAINING_SHOWN, STRIPS_SHOWN = 24, 12, 6
SYSTEMS = {
    "cascade": "Cascaded diffusion",
    "dalle": "Transformer prior + dVAE",
    "hierarchy": "VQ-VAE-2 + a prior per level",
}


@dataclass(frozen=True)
class StageView:
    """What the page shows of one stage."""

    name: str
    kind: str
    status: str
    seconds: float | None
    run_dir: Path
    model_dir: Path | None
    metrics: Path | None
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """One evaluation as found on disk; `problem` says why there is none."""

    name: str
    problem: str | None
    tree: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    directory: Path

    @property
    def label(self) -> str:
        """The system's name for people."""
        if self.get("protocol", "system", "decoder") == "autoencoder":
            return f"Transformer prior + {self.tree['name']}"
        return SYSTEMS.get(str(self.tree.get("system")), self.name)

    def get(self, *path: str) -> Any:  # noqa: ANN401 - a value of a JSON tree
        """The value at a path of keys, None where any is missing."""
        node: Any = self.tree
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node

    def of(self, part: str) -> list[Mapping[str, Any]]:
        """Samples of one part, one per caption, in the order they were asked."""
        return [each for each in self.samples if each["part"] == part and each["repeat"] == 0]


@dataclass(frozen=True)
class Tile:
    """One picture of a card; `source` is a data URI, None where the file is missing."""

    label: str
    source: str | None
    exact: bool | None = None
    nearest: str | None = None


@dataclass(frozen=True)
class Card:
    """A caption with the real image and what every system drew."""

    caption: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Cell:
    """One figure with its interval, or None where it was not measured; shares are percentages."""

    value: str
    interval: str
    bar: tuple[float, float, float] | None


@dataclass(frozen=True)
class Line:
    """One row of the table of scores: a cell per system."""

    label: str
    note: str
    cells: Sequence[Cell | None]
    baseline: bool


def write_page(
    run_dir: Path, title: str, stages: Sequence[StageView], evaluations: Mapping[str, Path]
) -> Path:
    """Write `run_dir/index.html`; `evaluations` maps names to evaluation.json or its directory.

    The file carries its pictures and style inside and links to nothing but directories of the run.
    """
    wanted = {stage.name: stage.run_dir for stage in of_kind(stages, "evaluate")}
    files = {**wanted, **evaluations}
    back, named = reconstructions(files), classes(files)
    others = {name: path for name, path in files.items() if name not in {*back, *named}}
    results = [read_result(name, path) for name, path in others.items()]
    judged = [result for result in results if result.problem is None]
    held_out = str(judged[0].get("held_out")) if judged else "composition"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html").render(
        title=title,
        held_out=held_out,
        results=results,
        back=list(back.values()),
        named=list(named.values()),
        judged=judged,
        seen=cards(judged, "train", TRAINING_SHOWN),
        unseen=cards(judged, held_out, HELD_OUT_SHOWN),
        lines=score_lines(judged, held_out),
        shares=shares,
        strips={result.name: strips(result, held_out) for result in judged},
        reranking={result.name: reranking_charts(result) for result in judged},
        curves=[(stage, loss_chart(stage)) for stage in of_kind(stages, "train")],
        stages=stages,
        columns=list(dict.fromkeys(name for stage in stages for name in stage.facts)),
        link=lambda path: relative(path, run_dir),
        duration=duration,
        total=sum(stage.seconds or 0.0 for stage in stages),
        protocols={result.name: list(flatten(result.get("protocol"))) for result in judged},
        flatten=flatten,
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    target = run_dir / "index.html"
    write_text(target, html)
    return target


def of_kind(stages: Sequence[StageView], kind: str) -> list[StageView]:
    """The stages of one kind, in their order."""
    return [stage for stage in stages if stage.kind == kind]


def read_result(name: str, path: Path) -> Result:
    """Read an evaluation and its sample index; what is not there becomes a stated problem."""
    file = path / "evaluation.json" if path.is_dir() else path
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        index = (file.parent / "samples.jsonl").read_text(encoding="utf-8")
        samples = [json.loads(line) for line in index.splitlines()]
    except OSError as error:
        problem = f"{Path(error.filename).name} is missing: the evaluation has not finished"
        return Result(name, problem, {}, [], file.parent)
    except ValueError:
        return Result(name, "its files are damaged: run the evaluation again", {}, [], file.parent)
    return Result(name, None, tree, samples, file.parent)


def cards(results: Sequence[Result], part: str, limit: int) -> list[Card]:
    """The first captions asked, with the real image and every system's sample side by side."""
    samples = {result.name: {each["key"]: each for each in result.of(part)} for result in results}
    asked: dict[str, str] = {}
    for result in results:
        asked |= {each["key"]: each["caption"] for each in result.of(part)}
    # Captions that every system was asked come first, then those of some.
    keys = sorted(asked, key=lambda key: -sum(key in each for each in samples.values()))
    return [_card(key, asked[key], results, samples) for key in keys[:limit]]


def _card(
    key: str,
    caption: str,
    results: Sequence[Result],
    samples: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> Card:
    tiles = []
    for result in results:
        entry = samples[result.name].get(key)
        if entry is None:
            tiles.append(Tile(result.label, None))
            continue
        nearest = entry.get("nearest")
        exact = None if nearest is None else nearest == caption
        picture = data_uri(result.directory, entry["sample"])
        tiles.append(Tile(result.label, picture, exact, nearest))
    sources = [(result, samples[result.name].get(key)) for result in results]
    real = [data_uri(result.directory, entry["real"]) for result, entry in sources if entry]
    largest = max((each for each in real if each), key=len, default=None)
    return Card(caption, [Tile("real", largest), *tiles])


def strips(result: Result, part: str) -> list[tuple[str, str | None, int]]:
    """Candidates of a few captions: caption, strip, and how many pictures it holds."""
    rows = [each for each in result.of(part) if "candidates" in each][:STRIPS_SHOWN]
    return [
        (each["caption"], data_uri(result.directory, each["candidates"]), len(each["scores"]))
        for each in rows
    ]


def data_uri(directory: Path, name: str) -> str | None:
    """A PNG below `directory` as a data URI; None if it is not there or lies elsewhere."""
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()) or not path.is_file():
        return None
    return embedded(path)


def score_lines(results: Sequence[Result], held_out: str) -> list[Line]:
    """The table of scores, each with its baselines under it."""
    among = "nearest real image is the caption's own"
    rows: list[tuple[str, str, tuple[str, ...], float, bool]] = [
        ("Exact match, never seen", among, ("exact_match", held_out), 100, False),
        (
            "the same, against undistorted real images",
            "",
            ("exact_match_real_images", held_out),
            100,
            True,
        ),
        (
            "the same, captions shuffled",
            "chance",
            ("exact_match_shuffled_captions", held_out),
            100,
            True,
        ),
        ("Exact match, training captions", among, ("exact_match", "train"), 100, False),
        ("CLIP retrieval, never seen", "", ("clip_retrieval", held_out), 100, False),
        (
            "the same, real images",
            "what this CLIP can do",
            ("clip_retrieval_real_images", held_out),
            100,
            True,
        ),
        ("CLIP retrieval, training captions", "", ("clip_retrieval", "train"), 100, False),
        ("CLIP score, never seen", "100 × cosine", ("clip_score", held_out), 1, False),
        (
            "the same, captions shuffled",
            "",
            ("clip_score", "shuffled_captions", held_out),
            1,
            True,
        ),
        ("the same, real images", "", ("clip_score", "real_images", held_out), 1, True),
    ]
    lines = [
        Line(label, note, [cell(result.get(*path), scale) for result in results], baseline)
        for label, note, path, scale, baseline in rows
    ]
    metrics = dict.fromkeys(str(result.get("protocol", "features", "metric")) for result in results)
    for metric in metrics:
        lines += _distance_lines(results, metric)
    return lines


def _distance_lines(results: Sequence[Result], metric: str) -> list[Line]:
    def distance(result: Result, *path: str) -> Cell | None:
        tree = result.get(metric, *path)
        if not isinstance(tree, Mapping) or "value" not in tree:
            return None
        counts = f"{tree['images']} against {tree['reference_images']} images"
        return Cell(f"{tree['value']:.2f}", counts, None)

    return [
        Line(metric, "lower is better", [distance(result) for result in results], baseline=False),
        Line(
            "the same, real training images",
            "what copying would get",
            [distance(result, "baselines", "real_train") for result in results],
            baseline=True,
        ),
    ]


def cell(score: object, scale: float) -> Cell | None:
    """A score of evaluation.json as a cell."""
    if not isinstance(score, Mapping) or not {"value", "low", "high", "n"} <= score.keys():
        return None
    value, low, high = (scale * float(score[name]) for name in ("value", "low", "high"))
    unit = "%" if scale == 100 else ""
    bar = (value, low, high) if scale == 100 else None
    return Cell(f"{value:.1f}{unit}", f"{low:.1f} to {high:.1f}, n = {score['n']}", bar)


def shares(result: Result, *path: str) -> str:
    """A proportion as words for running text."""
    found = cell(result.get(*path), 100)
    return "not measured" if found is None else f"{found.value} (95% interval {found.interval})"


def reranking_charts(result: Result) -> list[tuple[str, Markup]]:
    """Exact match and CLIP score of the best of N, with intervals; empty if nothing was ranked."""
    table = result.get("reranking") or []
    if len(table) < 2:
        return []
    sizes = [float(row["best_of"]) for row in table]
    x = svg_charts.doubling_axis("candidates per caption", sizes)
    pictures = []
    for key, name, scale in (
        ("exact_match", "exact match, %", 100.0),
        ("clip_score", "CLIP score by the ranker", 1.0),
    ):
        points = [
            Point(size, *(scale * row[key][field] for field in ("value", "low", "high")))
            for size, row in zip(sizes, table, strict=True)
        ]
        lows = [point.low for point in points if point.low is not None]
        highs = [point.high for point in points if point.high is not None]
        y = svg_charts.linear_axis(name, min(lows), max(highs))
        line = Series(name, points)
        pictures.append((name, svg_charts.line_chart(name, [line], x, y, marks=True)))
    return pictures


def loss_chart(stage: StageView) -> tuple[Markup, Markup] | None:
    """A stage's losses over its steps with their legend; None without recorded metrics."""
    series = loss_series(stage.metrics)
    if not series:
        return None
    values = [point.y for line in series for point in line.points]
    last = max(point.x for line in series for point in line.points)
    x = svg_charts.linear_axis("steps", 0, last)
    low, high = min(values), max(values)
    y = (
        svg_charts.log_axis("loss", low, high)
        if low > 0 and high > 8 * low
        else svg_charts.linear_axis("loss", low, high)
    )
    name = f"losses of {stage.name}"
    return svg_charts.line_chart(name, series, x, y, marks=False), svg_charts.legend(series)


def loss_series(metrics: Path | None) -> list[Series]:
    """The losses of a metrics.jsonl, by name; a line that was cut short is left out."""
    if metrics is None or not metrics.is_file():
        return []
    found: dict[str, list[Point]] = {}
    for text in metrics.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(text)
        except ValueError:
            continue
        for name, value in entry.get("metrics", {}).items():
            if name.split("/")[0] == "loss" and isinstance(value, int | float):
                found.setdefault(name, []).append(Point(float(entry["step"]), float(value)))
    finite = {
        name: [point for point in points if abs(point.y) < float("inf")]
        for name, points in found.items()
    }
    return [
        Series(name, svg_charts.thin(points)) for name, points in sorted(finite.items()) if points
    ]


def flatten(tree: object, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and values of a JSON tree."""
    if isinstance(tree, Mapping):
        return [
            row
            for key, value in tree.items()
            for row in flatten(value, f"{prefix}.{key}" if prefix else str(key))
        ]
    if tree is None and not prefix:
        return []
    return [(prefix, tree if isinstance(tree, str) else json.dumps(tree))]


def relative(path: Path, root: Path) -> str:
    """A link from the page to a path, percent-encoded."""
    return quote(os.path.relpath(path, root).replace(os.sep, "/"))


def duration(seconds: float | None) -> str:
    """Minutes and seconds."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
