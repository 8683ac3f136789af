"""Line charts as inline SVG: no script, no font, no colour of their own beyond CSS classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 34
COLOURS = 6
"""Classes c0 .. c5 that the page's style sheet gives colours to."""


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


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from `low` to `high` with labelled ticks."""

    label: str
    low: float
    high: float
    logarithmic: bool
    ticks: Sequence[tuple[float, str]]

    def place(self, value: float) -> float:
        """Where `value` lies between the ends, 0 to 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def line_chart(name: str, series: Sequence[Series], x: Axis, y: Axis, *, marks: bool) -> Markup:
    """An SVG chart; `marks` draws every point and its interval, for few points."""
    body = Markup().join([*_frame(x, y), *_lines(series, x, y, marks=marks)])
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, name, body)


def legend(series: Sequence[Series]) -> Markup:
    """The names of the lines in their colours."""
    items = (
        Markup('<span class="key c{}">{}</span>').format(index % COLOURS, line.label)
        for index, line in enumerate(series)
    )
    return Markup('<p class="legend">{}</p>').format(Markup(" ").join(items))


def linear_axis(label: str, low: float, high: float) -> Axis:
    """An axis whose ends are round numbers around [low, high]."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):
        low, high = low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2
    step = nice_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [(place * step, number(place * step)) for place in range(first, last + 1)]
    return Axis(label, first * step, last * step, logarithmic=False, ticks=ticks)


def log_axis(label: str, low: float, high: float) -> Axis:
    """A logarithmic axis over [low, high], both positive, with ticks at 1, 2, 5 x powers of 10."""
    if high <= low * 1.01:
        low, high = low / 2, high * 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if math.log10(high / low) < 1.7 else (1,)
    places = [digit * 10.0**power for power in powers for digit in digits]
    ticks = [(place, number(place)) for place in places if low <= place <= high]
    return Axis(label, low, high, logarithmic=True, ticks=ticks)


def doubling_axis(label: str, values: Sequence[float]) -> Axis:
    """A logarithmic axis with a tick at each of the (few) values."""
    low, high = min(values), max(values)
    ends = (low / 1.2, high * 1.2)
    return Axis(label, *ends, logarithmic=True, ticks=[(value, number(value)) for value in values])


def nice_step(rough: float) -> float:
    """The smallest of 1, 2, 2.5, 5 x a power of 10 that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))


def number(value: float) -> str:
    """Short, for a tick."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def thin(points: Sequence[Point], most: int = 240) -> list[Point]:
    """At most about `most` points: means over equal stretches, the last point kept exactly."""
    if len(points) <= most:
        return list(points)
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [
        Point(sum(p.x for p in group) / len(group), sum(p.y for p in group) / len(group))
        for group in groups
    ]
    return [*means, points[-1]]


def _x(axis: Axis, value: float) -> str:
    return f"{LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT):.1f}"


def _y(axis: Axis, value: float) -> str:
    return f"{HEIGHT - BOTTOM - axis.place(value) * (HEIGHT - TOP - BOTTOM):.1f}"


def _frame(x: Axis, y: Axis) -> list[Markup]:
    parts = []
    for value, label in y.ticks:
        here = _y(y, value)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                LEFT, WIDTH - RIGHT, here, here
            )
        )
        parts.append(
            Markup('<text class="tick end" x="{}" y="{}" dy="4">{}</text>').format(
                LEFT - 6, here, label
            )
        )
    for value, label in x.ticks:
        parts.append(
            Markup('<text class="tick mid" x="{}" y="{}">{}</text>').format(
                _x(x, value), HEIGHT - BOTTOM + 15, label
            )
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        Markup('<text class="tick mid" x="{}" y="{}">{}</text>').format(middle, HEIGHT - 4, x.label)
    )
    return parts


def _lines(series: Sequence[Series], x: Axis, y: Axis, *, marks: bool) -> list[Markup]:
    parts = []
    for index, line in enumerate(series):
        colour = f"c{index % COLOURS}"
        path = " ".join(f"{_x(x, point.x)},{_y(y, point.y)}" for point in line.points)
        parts.append(
            Markup('<polyline class="line {}" points="{}"><title>{}</title></polyline>').format(
                colour, path, line.label
            )
        )
        for point in line.points if marks else ():
            parts += _mark(point, x, y, colour, line.label)
    return parts


def _mark(point: Point, x: Axis, y: Axis, colour: str, label: str) -> list[Markup]:
    parts = []
    words = f"{label}, {number(point.x)}: {point.y:.1f}"
    if point.low is not None and point.high is not None:
        here = _x(x, point.x)
        parts.append(
            Markup('<line class="whisker {}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
                colour, here, here, _y(y, point.low), _y(y, point.high)
            )
        )
        words += f" [{point.low:.1f}, {point.high:.1f}]"
    parts.append(
        Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.2"><title>{}</title></circle>').format(
            colour, _x(x, point.x), _y(y, point.y), words
        )
    )
    return parts
