"""The part of the result page about models of classes: do their pictures show what was asked?"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from launch.report import svg_charts
from launch.report.reconstruction_section import embedded, judged
from launch.report.svg_charts import Point, Series

SHEET = "grid_classes.png"


@dataclass(frozen=True)
class Share:
    """A proportion in percent with its 95% interval; without one all three are equal."""

    value: float
    low: float
    high: float
    n: int | None

    @property
    def words(self) -> str:
        """The interval and the count."""
        return f"{self.low:.1f} to {self.high:.1f}, n = {self.n}"


@dataclass(frozen=True)
class Scale:
    """What was drawn at one guidance scale, or what it is held against."""

    label: str
    accuracy: Share
    by_class: Mapping[str, str]
    distance: str
    calls: str
    baseline: bool = False


@dataclass(frozen=True)
class Classes:
    """One judged model of classes."""

    name: str
    names: tuple[str, ...]
    scales: tuple[Scale, ...]
    """The guidance scales, then the real pictures and chance."""
    best: Scale
    chart: Markup | None
    """Accuracy over guidance; None for a single scale."""
    sheet: str | None
    """The sheet of pictures as a data URI."""
    protocol: Mapping[str, Any]


def classes(evaluations: Mapping[str, Path]) -> dict[str, Classes]:
    """Those of the evaluations, by stage, that judged classes; a damaged file is not one."""
    return {
        name: read(tree, directory / SHEET)
        for name, (tree, directory) in judged(evaluations, "classes").items()
    }


def read(tree: Mapping[str, Any], sheet: Path) -> Classes:
    """An evaluation's tree in words."""
    drawn = tuple(_drawn(scale, found) for scale, found in tree["guidance"].items())
    real = tree["real_test"]
    chance = 100 * float(tree["chance"])
    against = (
        Scale("real, held out", _share(real["accuracy"]), _by_class(real), "", "", baseline=True),
        Scale("chance", Share(chance, chance, chance, None), {}, "", "", baseline=True),
    )
    return Classes(
        name=str(tree["name"]),
        names=tuple(map(str, tree["protocol"]["classes"])),
        scales=(*drawn, *against),
        best=max(drawn, key=lambda scale: scale.accuracy.value),
        chart=_chart(tree["guidance"]) if len(drawn) > 1 else None,
        sheet=embedded(sheet) if sheet.is_file() else None,
        protocol=tree["protocol"],
    )


def _drawn(scale: str, found: Mapping[str, Any]) -> Scale:
    distances = [
        f"{name} {value['value']:.1f}, {value['images']} against {value['reference_images']}"
        for name, value in found.items()
        if isinstance(value, Mapping) and "reference_images" in value
    ]
    return Scale(
        label=f"guidance {scale}",
        accuracy=_share(found["accuracy"]),
        by_class=_by_class(found),
        distance="; ".join(distances) or "not measured",
        calls=str(found["network_calls"]),
    )


def _share(score: Mapping[str, float]) -> Share:
    value, low, high = (100 * score[key] for key in ("value", "low", "high"))
    return Share(value, low, high, int(score["n"]))


def _by_class(found: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{100 * value:.0f}%" for name, value in found["accuracy_by_class"].items()}


def _chart(guidance: Mapping[str, Mapping[str, Any]]) -> Markup:
    """Accuracy with its intervals over guidance."""
    shares = {float(scale): _share(found["accuracy"]) for scale, found in guidance.items()}
    points = [
        Point(scale, share.value, share.low, share.high) for scale, share in sorted(shares.items())
    ]
    x = svg_charts.linear_axis("guidance", 0, max(shares))
    y = svg_charts.linear_axis("named as asked, %", 0, 100)
    return svg_charts.line_chart("accuracy", [Series("accuracy", points)], x, y, marks=True)
