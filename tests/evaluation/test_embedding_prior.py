"""The evaluation of a prior: its embeddings and the captions', against those of the images."""

import pytest
import torch
from pydantic import TypeAdapter
from unclip_home import write_system

from evaluation.config import EvaluationConfig
from evaluation.embedding_prior import Embeddings, embedding_metrics
from evaluation.evaluate import evaluate
from evaluation.reference import Reference
from evaluation.result import EvaluationResult
from launch.evaluate import image_count
from launch.report.embeddings import prior_table
from launch.report.evaluations import read
from mezzotint.common.errors import UserError


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    return write_system(tmp_path_factory.mktemp("unclip")).model_dump(mode="json")


def config(system):
    tree = {
        "kind": "embedding_prior",
        "name": "prior",
        "system": system,
        "reference": {"url": "data/emoji", "where": {"role": ["firefighter", "pilot"]}},
        "limit": 3,
        "precision": "fp32",
    }
    return TypeAdapter(EvaluationConfig).validate_python(tree)


def test_embeddings_of_held_out_captions_are_compared_with_those_of_images(system, tmp_path):
    wanted = config(system)
    evaluate(wanted, tmp_path)
    result = EvaluationResult.read(tmp_path / "evaluation.json")
    cosines = result.metrics["cosine_with_image"]
    assert cosines["prior"].n == cosines["caption"].n == 3
    gain = result.metrics["cosine_gain"]["prior over caption"]
    assert gain.value == pytest.approx(cosines["prior"].value - cosines["caption"].value)
    assert result.protocol["captions"] == image_count(wanted) == 3
    shown = prior_table(read("prior", tmp_path))
    assert {label for label, _, _ in shown.rows} >= {"difference of both"}


def test_a_system_without_a_prior_is_refused(system, tmp_path):
    with pytest.raises(UserError, match=r"system\.prior: this evaluation is of a prior"):
        evaluate(config(system | {"prior": None}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_prior_that_gives_the_images_embeddings_has_cosine_1():
    images = torch.eye(3)
    real = Reference(
        held_out="split",
        keys=("a", "b", "c"),
        captions=("a", "b", "c"),
        images=torch.arange(9, dtype=torch.uint8).view(3, 1, 1, 3),
        parts=("split",) * 3,
        fingerprint="",
    )
    captions = torch.tensor([[0.8, 0.6, 0.0], [0.8, 0.6, 0.0]])
    found = embedding_metrics(Embeddings(images[1:], captions, images, (1, 2)), real, 0)
    assert found["cosine_with_image"]["prior"].value == 1
    assert found["cosine_with_image"]["caption"].value == pytest.approx(0.3)
    assert found["nearer_than_caption"]["prior"].value == 1
    assert found["nearest_image"]["prior"].value == 1
    assert found["nearest_image"]["caption"].value == 0
