"""Settings of evaluations: every kind is named."""

import pytest
import yaml

from evaluation.result import EvaluationResult
from launch.evaluate import evaluate_file
from mezzotint.common.errors import UserError

SYSTEM = {"kind": "cascade", "base": "b", "upsampler": "u"}
OLD = {
    "text_to_image": {"system": SYSTEM, "reference": {"url": "set"}, "clip": "c"},
    "reconstruction": {"autoencoder": "a", "images": {"url": "set"}},
    "class_conditional": {
        "system": {"kind": "diffusion", "model": "m"},
        "classes": {"attribute": "group", "values": ["a", "b"]},
        "reference": {"url": "set"},
    },
}


def refused(tmp_path, tree):
    path = tmp_path / "evaluation.yaml"
    path.write_text(yaml.safe_dump({"name": "x", **tree}))
    with pytest.raises(UserError) as refusal:
        evaluate_file(path, [], tmp_path / "out")
    return str(refusal.value)


@pytest.mark.parametrize("kind", OLD)
def test_an_evaluation_without_a_kind_is_refused_with_the_key_to_add(tmp_path, kind):
    assert f"add `kind: {kind}`" in refused(tmp_path, OLD[kind])


def test_an_unknown_kind_is_refused_with_those_there_are(tmp_path):
    message = refused(tmp_path, {"kind": "classes", **OLD["class_conditional"]})
    assert "kind: there is no 'classes'; choose 'text_to_image', 'reconstruction'" in message


def test_renamed_keys_are_refused_with_their_new_names(tmp_path):
    old = {"kind": "reconstruction", "autoencoder": "a", "pictures": {"url": "set"}, "shown": 4}
    message = refused(tmp_path, old)
    assert "pictures: was renamed to images" in message
    assert "shown: was renamed to grid_images" in message


def test_a_result_of_another_version_is_refused(tmp_path):
    path = tmp_path / "evaluation.json"
    with pytest.raises(UserError, match="no such file"):
        EvaluationResult.read(path)
    path.write_text('{"name": "x", "psnr": {"value": 1.0}}')
    with pytest.raises(UserError, match="run the evaluation again"):
        EvaluationResult.read(path)
