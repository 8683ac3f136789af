"""The result page's part about models of classes."""

import json

from PIL import Image

from launch.report.class_section import classes
from launch.report.html import write_page

NAMES = ("flags", "<food>")


def judged(right, n=200):
    value = right / n
    accuracy = {"value": value, "low": value - 0.05, "high": value + 0.05, "n": n}
    return {"accuracy": accuracy, "accuracy_by_class": {"flags": 0.975, "<food>": value}}


def fabricate(directory, scales=("0", "1", "4")):
    """An evaluation of classes as evaluation.classes leaves it."""
    directory.mkdir()
    Image.new("RGB", (8, 8), "blue").save(directory / "grid_classes.png")
    distance = {"value": 144.6, "images": 200, "reference_images": 610, "caution": None}
    guidance = {
        scale: {
            **judged(40 + 60 * place),
            "fd_efficientnet_lite0": distance,
            "network_calls": 25 if scale in "01" else 50,
        }
        for place, scale in enumerate(scales)
    }
    tree = {
        "name": "emoji & class",
        "kind": "classes",
        "protocol": {"classes": list(NAMES), "per_class": 100, "system": {"sampler": "ddim"}},
        "chance": 0.5,
        "real_test": judged(108, n=115),
        "guidance": guidance,
    }
    (directory / "evaluation.json").write_text(json.dumps(tree))


def test_a_model_of_classes_is_shown_across_guidance_with_what_to_hold_it_against(tmp_path):
    fabricate(tmp_path / "class_judged")
    page = write_page(tmp_path, "t", [], {"class_judged": tmp_path / "class_judged"}).read_text()
    assert "emoji &amp; class" in page
    assert "&lt;food&gt;" in page
    assert "<food>" not in page
    section = page[page.index('id="classes"') : page.index('id="reranking"')]
    for words in (
        *("guidance 0", "20.0%", "15.0 to 25.0, n = 200"),
        *("guidance 4", "80.0%", "75.0 to 85.0, n = 200", "98%"),
        *("fd_efficientnet_lite0 144.6, 200 against 610", "<td>25</td>", "<td>50</td>"),
        *("real, held out", "93.9%", "chance", "50.0%"),
        *("data:image/png;base64,", '<svg class="chart"', "system.sampler", "ddim"),
    ):
        assert words in section, words
    assert section.index("guidance 4") < section.index("real, held out") < section.index("chance<")
    header = page[: page.index("<main>")]
    assert "80.0%" in header
    assert "at guidance 4" in header
    assert "is missing" not in page


def test_a_single_scale_has_no_chart_and_a_missing_sheet_is_said(tmp_path):
    fabricate(tmp_path / "one", scales=("2",))
    (tmp_path / "one" / "grid_classes.png").unlink()
    (found,) = classes({"one": tmp_path / "one" / "evaluation.json"}).values()
    assert found.chart is None
    assert found.sheet is None
    page = write_page(tmp_path, "t", [], {"one": tmp_path / "one"}).read_text()
    assert "The sheet of pictures is missing." in page


def test_other_and_damaged_evaluations_are_none_of_classes(tmp_path):
    fabricate(tmp_path / "class_judged")
    (tmp_path / "class_judged" / "evaluation.json").write_text("{")
    assert classes({"a": tmp_path / "class_judged", "b": tmp_path / "nowhere"}) == {}
