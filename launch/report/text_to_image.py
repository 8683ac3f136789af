"""The sections on text-to-image systems: samples beside real images, scores, best of N."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evaluation.metrics.intervals import Score
from launch.report.charts import Point, Series, line_chart
from launch.report.evaluations import Cell, Evaluation, cell, data_uri

HELD_OUT_SHOWN, TRAINING_SHOWN, STRIPS_SHOWN = 24, 12, 6
SYSTEMS = {
    "cascade": "Cascaded diffusion",
    "dalle": "Transformer prior + dVAE",
    "hierarchy": "VQ-VAE-2 + a prior per level",
    "latent": "Latent diffusion",
}


@dataclass(frozen=True)
class System:
    """One evaluated system."""

    evaluation: Evaluation

    @property
    def label(self) -> str:
        if self.evaluation.setting("system", "decoder") == "autoencoder":
            return f"Transformer prior + {self.evaluation.result.name}"
        kind = str(self.evaluation.setting("system", "kind"))
        return SYSTEMS.get(kind, self.evaluation.stage)

    def of(self, part: str) -> list[Mapping[str, Any]]:
        """Samples of one part, one per caption, in the order of the evaluation."""
        return [
            each for each in self.evaluation.samples if each["part"] == part and each["repeat"] == 0
        ]

    def proportion(self, metric: str, part: str) -> str:
        """A proportion as words for running text."""
        found = cell(self.evaluation.metric(metric, part), percent=True)
        return "not measured" if found is None else f"{found.value} (95% interval {found.detail})"


@dataclass(frozen=True)
class Tile:
    """One image of a card; `source` is a data URI, None where the file is missing."""

    label: str
    source: str | None
    exact: bool | None = None
    nearest: str | None = None


@dataclass(frozen=True)
class Card:
    """A caption with the real image and every system's sample."""

    caption: str
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Line:
    """One row of the table of scores: a cell per system."""

    label: str
    note: str
    cells: Sequence[Cell | None]
    baseline: bool


@dataclass(frozen=True)
class BestOfN:
    """Charts over the number of candidates, and strips of candidates with their captions."""

    label: str
    charts: Sequence[tuple[str, Markup]]
    strips: Sequence[tuple[str, str | None, int]]


@dataclass(frozen=True)
class TextToImage:
    """Everything that the page shows of text-to-image systems."""

    held_out: str
    systems: Sequence[System]
    unseen: Sequence[Card]
    seen: Sequence[Card]
    lines: Sequence[Line]
    best_of_n: Sequence[BestOfN]


def text_to_image_section(evaluations: Sequence[Evaluation]) -> TextToImage:
    """Samples, scores and charts of all systems."""
    systems = [System(each) for each in evaluations]
    names = [str(each.setting("reference", "split")) for each in evaluations]
    held_out = names[0] if names else "composition"
    ranked = [(system, best_of_n_charts(system)) for system in systems]
    return TextToImage(
        held_out=held_out,
        systems=systems,
        unseen=cards(systems, held_out, HELD_OUT_SHOWN),
        seen=cards(systems, "train", TRAINING_SHOWN),
        lines=score_lines(systems, held_out),
        best_of_n=[
            BestOfN(system.label, charts, strips(system, held_out))
            for system, charts in ranked
            if charts
        ],
    )


def cards(systems: Sequence[System], part: str, limit: int) -> list[Card]:
    """The first captions, with the real image and every system's sample side by side."""
    samples = [{each["key"]: each for each in system.of(part)} for system in systems]
    captions = {key: each["caption"] for of_system in samples for key, each in of_system.items()}
    # captions that every system has come first, then those of some
    keys = sorted(captions, key=lambda key: -sum(key in of_system for of_system in samples))
    return [
        _card(captions[key], systems, [of_system.get(key) for of_system in samples])
        for key in keys[:limit]
    ]


def _card(
    caption: str, systems: Sequence[System], samples: Sequence[Mapping[str, Any] | None]
) -> Card:
    tiles, real = [], list[str]()
    for system, sample in zip(systems, samples, strict=True):
        if sample is None:
            tiles.append(Tile(system.label, None))
            continue
        nearest, directory = sample.get("nearest"), system.evaluation.directory
        exact = None if nearest is None else nearest == caption
        tiles.append(Tile(system.label, data_uri(directory, sample["sample"]), exact, nearest))
        real += [image for image in [data_uri(directory, sample["real"])] if image]
    return Card(caption, [Tile("real", max(real, key=len, default=None)), *tiles])


def strips(system: System, part: str) -> list[tuple[str, str | None, int]]:
    """Candidates of a few captions: caption, strip, and how many images it holds."""
    rows = [each for each in system.of(part) if "candidates" in each][:STRIPS_SHOWN]
    directory = system.evaluation.directory
    return [
        (each["caption"], data_uri(directory, each["candidates"]), len(each["scores"]))
        for each in rows
    ]


def score_lines(systems: Sequence[System], held_out: str) -> list[Line]:
    """The table of scores, each with its baselines under it."""
    rule = "nearest real image is the caption's own"
    real = "the same, against undistorted real images"
    shuffled = "the same, captions shuffled"
    rows = [
        ("Exact match, never seen", rule, "exact_match", held_out),
        (real, "", "exact_match_real_images", held_out),
        (shuffled, "chance", "exact_match_shuffled_captions", held_out),
        ("Exact match, training captions", rule, "exact_match", "train"),
        ("CLIP retrieval, never seen", "", "clip_retrieval", held_out),
        ("the same, real images", "upper bound", "clip_retrieval_real_images", held_out),
        ("CLIP retrieval, training captions", "", "clip_retrieval", "train"),
        ("CLIP score, never seen", "100 × cosine", "clip_score", held_out),
        (shuffled, "", "clip_score_shuffled_captions", held_out),
        ("the same, real images", "", "clip_score_real_images", held_out),
    ]
    names = [str(system.evaluation.setting("features", "metric")) for system in systems]
    for name in dict.fromkeys(names):
        rows += [
            (name, "lower is better", name, held_out),
            ("the same, real training images", "a copy of the training set", name, "real_train"),
        ]
    return [
        Line(
            label=label,
            note=note,
            cells=[
                cell(
                    system.evaluation.metric(metric, group),
                    percent=metric.startswith(("exact_match", "clip_retrieval")),
                )
                for system in systems
            ],
            baseline=label.startswith("the same"),
        )
        for label, note, metric, group in rows
    ]


def best_of_n_charts(system: System) -> list[tuple[str, Markup]]:
    """Exact match and CLIP score of the best of N, with intervals; empty if nothing was ranked."""
    charts = []
    for metric, name, scale in (
        ("exact_match_best_of_n", "exact match, %", 100),
        ("clip_score_best_of_n", "CLIP score by the ranker", 1),
    ):
        points = [
            Point(float(size), *(scale * each for each in (score.value, score.low, score.high)))
            for size, score in system.evaluation.result.metrics.get(metric, {}).items()
            if isinstance(score, Score)
        ]
        if len(points) > 1:
            chart = line_chart(
                name,
                [Series(name, points)],
                x_label="candidates per caption",
                y_label=name,
                x_ticks=[point.x for point in points],
                x_scale="log",
            )
            charts.append((name, chart))
    return charts
