"""Line charts as SVG images inside a page, by matplotlib without its global state."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLOURS = ("#2c6fbb", "#c2571a", "#22744a", "#8b4fa8", "#9a7a00", "#b23a5e")
GREY = "#7f7b73"
"""Legible on light and on dark pages."""


@dataclass(frozen=True)
class Point:
    """A value at x, with its interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A named line."""

    label: str
    points: Sequence[Point]


def line_chart(
    name: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float] | None = None,
    x_scale: Literal["linear", "log"] = "linear",
    y_scale: Literal["linear", "log"] = "linear",
    y_limits: tuple[float, float] | None = None,
) -> Markup:
    """An `img` element; with `x_ticks` every point is marked, with its interval."""
    with rc_context({"svg.hashsalt": "mezzotint", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.2, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for index, line in enumerate(series):
            _draw_series(axes, line, COLOURS[index % len(COLOURS)], marked=x_ticks is not None)
        axes.set_xscale(x_scale)
        axes.set_yscale(y_scale)
        axes.set_xlabel(x_label, color=GREY)
        axes.set_ylabel(y_label, color=GREY)
        if y_limits is not None:
            axes.set_ylim(*y_limits)
        if x_ticks is not None:
            axes.xaxis.set_major_locator(FixedLocator(list(x_ticks)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(colors=GREY, which="both", length=0)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.7)
        axes.spines[:].set_visible(False)
        if len(series) > 1:
            axes.legend(labelcolor=GREY, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    source = f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Markup('<img class="chart" src="{}" alt="{}">').format(source, name)


def thin(points: Sequence[Point], most: int = 240) -> list[Point]:
    """At most about `most` points: minimum and maximum of equal stretches, and both ends."""
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // most)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        kept |= {min(stretch, key=lambda i: points[i].y), max(stretch, key=lambda i: points[i].y)}
    return [points[index] for index in sorted(kept)]


def _draw_series(axes: Axes, line: Series, colour: str, *, marked: bool) -> None:
    x, y = [point.x for point in line.points], [point.y for point in line.points]
    axes.plot(x, y, color=colour, label=line.label, lw=1.6, marker="o" if marked else "", ms=4)
    bounded = [
        (point.x, point.low, point.high)
        for point in line.points
        if point.low is not None and point.high is not None
    ]
    if marked and bounded:
        where, lows, highs = zip(*bounded, strict=True)
        axes.vlines(where, lows, highs, color=colour, lw=1.2)
