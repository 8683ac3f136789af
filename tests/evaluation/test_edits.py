"""The evaluation of edits: what variations keep, and how often text diffs reach their target."""

import pytest
from pydantic import TypeAdapter
from unclip_home import write_system

from evaluation.config import EvaluationConfig
from evaluation.evaluate import evaluate
from evaluation.result import EvaluationResult
from launch.evaluate import image_count
from launch.report.embeddings import edits_table
from launch.report.evaluations import read
from mezzotint.common.errors import UserError

WORDS = {"old": "man", "new": "woman"}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    return write_system(tmp_path_factory.mktemp("unclip")).model_dump(mode="json")


def config(system, **settings):
    tree = {
        "kind": "edits",
        "name": "edits",
        "system": system,
        "reference": {"url": "data/emoji", "where": {"role": ["firefighter", "pilot"]}},
        "attributes": ["role", "tone"],
        "variations": 3,
        "steps": 2,
        "replacements": [WORDS],
        "trials": 4,
        "thetas": [0.2, 0.4],
        "precision": "fp32",
    }
    return TypeAdapter(EvaluationConfig).validate_python(tree | settings)


def test_variations_and_text_diffs_are_read_by_the_nearest_image(system, tmp_path):
    wanted = config(system)
    evaluate(wanted, tmp_path)
    result = EvaluationResult.read(tmp_path / "evaluation.json")
    kept, chance = (
        result.metrics[name] for name in ("variation_keeps", "variation_keeps_by_chance")
    )
    assert set(kept) == set(chance) == {"role", "tone", "role or tone"}
    assert chance["role"] == 0.5
    assert chance["tone"] == pytest.approx(1 / 6)
    assert chance["role or tone"] == pytest.approx(0.5 + 0.5 / 6)
    assert kept["role"].n == 3
    name = "man to woman"
    assert result.metrics["text_diff_reaches"][name].n == 2
    assert result.metrics["text_diff_by_theta"][f"{name}, theta 0.4"].n == 4
    assert result.metrics["best_theta"][name] in (0.2, 0.4)
    assert image_count(wanted) == 3 + 4 * 2
    shown = edits_table(read("edits", tmp_path))
    assert [name for name, _ in shown.grids] == ["grid_replacement_0.png", "grid_variations.png"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attributes": ["colour"]}, r"attributes: no image has an attribute 'colour'"),
        (
            {"variations": 0, "replacements": [{"old": "sailor", "new": "cook"}]},
            r"replacements: 0 images",
        ),
    ],
)
def test_what_the_images_do_not_have_is_refused(system, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        evaluate(config(system, **settings), tmp_path)
    assert not list(tmp_path.iterdir())
