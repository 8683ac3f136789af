"""Charts: the same bytes for the same points, and no peak lost by thinning."""

from launch.report.charts import Point, Series, line_chart, thin


def test_the_same_points_give_the_same_bytes():
    series = [Series("loss", [Point(x, 1 / (x + 1)) for x in range(9)])]
    first, second = (line_chart("l", series, x_label="steps", y_label="loss") for _ in range(2))
    assert first == second


def test_names_are_escaped():
    chart = line_chart('"><script>', [Series("a", [Point(0, 1)])], x_label="x", y_label="y")
    assert "<script>" not in chart


def test_thinning_keeps_both_ends_and_the_extremes_of_every_stretch():
    points = [Point(x, float(x % 7)) for x in range(10_000)]
    points[4321], points[8765] = Point(4321, 99.0), Point(8765, -99.0)
    kept = thin(points, most=200)
    assert len(kept) <= 202
    assert {points[0], points[-1], points[4321], points[8765]} <= set(kept)
    assert [point.x for point in kept] == sorted(point.x for point in kept)
    assert thin(points[:50], most=200) == points[:50]
