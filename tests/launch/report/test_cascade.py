"""The page's section on cascades."""

from PIL import Image

from evaluation.metrics.intervals import Score
from evaluation.result import EvaluationResult
from launch.report.html import StageView, write_page


def written(directory):
    """An evaluation as evaluation.cascade leaves it, of two stages."""
    directory.mkdir()
    for name in ("grid_inputs.png", "spectra.png"):
        Image.new("RGB", (8, 8), "blue").save(directory / name)
    stages = ("upsamplers.0", "upsamplers.1")
    EvaluationResult(
        kind="cascade",
        name="inputs <of> stages",
        protocol={"system": {"sampling": {stages[0]: {"level": 0.05}}}},
        metrics={
            "brightness_shift": dict(zip(stages, (Score(0.4, -0.2, 1, 9),) * 2, strict=True)),
            "high_frequencies_db": {stages[1]: Score(-3, -4, -2, 9)},
        },
        seconds={},
    ).write(directory)
    return StageView(name="inputs", kind="evaluate", run_dir=directory, seconds=1.0, facts={})


def test_differences_are_shown_by_stage_with_their_sign_and_both_pictures(tmp_path):
    view = written(tmp_path / "inputs")
    page = write_page(tmp_path, "t", [view]).read_text()
    assert "inputs &lt;of&gt; stages" in page
    assert "<th>upsamplers.0, level 0.05</th><th>upsamplers.1</th>" in page
    assert "+0.4" in page
    assert "-0.2 to +1.0, n = 9" in page
    assert "-4.0 to -2.0, n = 9" in page
    assert page.count("not measured") == 1
    assert page.count("data:image/png;base64,") == 2
    (tmp_path / "inputs" / "spectra.png").unlink()
    page = write_page(tmp_path, "t", [view]).read_text()
    assert "The picture of the spectra is missing." in page


def test_a_page_without_cascades_has_no_such_section(tmp_path):
    assert 'id="cascades"' not in write_page(tmp_path, "t", []).read_text()
