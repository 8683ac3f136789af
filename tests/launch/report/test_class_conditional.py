"""The result page's section on class-conditional models."""

from PIL import Image

from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score
from evaluation.result import EvaluationResult
from launch.report.class_conditional import class_conditional_table
from launch.report.evaluations import Problem, read
from launch.report.html import StageView, write_page

NAMES = ("flags", "<food>")


def accuracy(right, n=200):
    return Score(right / n, right / n - 0.05, right / n + 0.05, n)


def fabricate(directory, scales=("0", "1", "4")):
    """An evaluation of classes as evaluation.class_conditional leaves it."""
    directory.mkdir()
    Image.new("RGB", (8, 8), "blue").save(directory / "grid_classes.png")
    groups = {f"guidance {scale}": 40 + 60 * index for index, scale in enumerate(scales)}
    distance = FrechetDistance(144.6, 200, 610, None)
    EvaluationResult(
        kind="class_conditional",
        name="emoji & class",
        protocol={"classes": list(NAMES), "samples_per_class": 100, "system": {"sampler": "ddim"}},
        metrics={
            "accuracy": {
                "real_test": accuracy(108, n=115),
                "chance": 0.5,
                **{group: accuracy(right) for group, right in groups.items()},
            },
            "accuracy/flags": dict.fromkeys(["real_test", *groups], 0.975),
            "accuracy/<food>": {group: right / 200 for group, right in groups.items()},
            "fd_efficientnet_lite0": dict.fromkeys(groups, distance),
            "network_calls": {group: 50 if group == "guidance 4" else 25 for group in groups},
        },
        seconds={},
    ).write(directory)


def page_of(root, name):
    """The page of a run whose only stage is an evaluation."""
    stage = StageView(name, "evaluate", root / name, seconds=1.0, facts={})
    return write_page(root, "t", [stage]).read_text()


def test_a_class_conditional_model_is_shown_across_guidance_with_its_baselines(tmp_path):
    fabricate(tmp_path / "class_evaluation")
    page = page_of(tmp_path, "class_evaluation")
    assert "emoji &amp; class" in page
    assert "&lt;food&gt;" in page
    assert "<food>" not in page
    section = page[page.index('id="classes"') : page.index('id="reranking"')]
    for words in (
        *("guidance 0", "20.0%", "15.0 to 25.0, n = 200"),
        *("guidance 4", "80.0%", "75.0 to 85.0, n = 200", "98%"),
        *("fd_efficientnet_lite0 144.6, 200 against 610 images", "<td>25</td>", "<td>50</td>"),
        *("real, held out", "93.9%", "chance", "50.0%"),
        *("data:image/png;base64,", '<img class="chart"', "system.sampler", "ddim"),
    ):
        assert words in section, words
    assert section.index("guidance 4") < section.index("real, held out") < section.index("chance<")
    header = page[: page.index("<main>")]
    assert "80.0%" in header
    assert "at guidance 4" in header
    assert "is missing" not in page


def test_a_single_scale_has_no_chart_and_a_missing_grid_is_reported(tmp_path):
    fabricate(tmp_path / "one", scales=("2",))
    (tmp_path / "one" / "grid_classes.png").unlink()
    found = class_conditional_table(read("one", tmp_path / "one" / "evaluation.json"))
    assert found.chart is None
    assert found.grid is None
    page = page_of(tmp_path, "one")
    assert "The grid of images is missing." in page


def test_damaged_and_missing_evaluations_are_problems(tmp_path):
    fabricate(tmp_path / "class_evaluation")
    (tmp_path / "class_evaluation" / "evaluation.json").write_text("{")
    assert isinstance(read("a", tmp_path / "class_evaluation"), Problem)
    assert isinstance(read("b", tmp_path / "nowhere"), Problem)
