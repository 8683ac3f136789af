"""The evaluation of Imagic: retrieval of the target, and nearness to the source."""

import pytest
from pydantic import TypeAdapter
from saved_network import saved
from unclip_home import CLIP, LENGTH, WORDS

from data_pipeline.text.tokenizer import Tokenizer
from evaluation.config import EvaluationConfig
from evaluation.evaluate import evaluate
from evaluation.result import EvaluationResult
from launch.evaluate import image_count
from launch.report.embeddings import imagic_table
from launch.report.evaluations import read
from mezzotint.common.errors import UserError
from models.diffusion.unet.network import UNetConfig

UNET = UNetConfig(
    image_size=8, channels=8, multipliers=(1, 2), depth=1, attention=(), head_width=8, groups=4,
    text={"vocab": 40, "length": LENGTH, "width": 8, "layers": 1, "heads": 1},
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagic")
    records = {"tokenizer": Tokenizer.train(WORDS, 40), "text_length": LENGTH}
    saved(root / "model", UNET, **records)
    saved(root / "clip", CLIP, **records)
    return root


def config(home, **settings):
    stage = {"steps": 1, "lr": 0.001}
    tree = {
        "kind": "imagic",
        "name": "edits",
        "system": {"kind": "diffusion", "model": str(home / "model"), "sampling": {"steps": 2}},
        "clip": str(home / "clip"),
        "reference": {"url": "data/emoji", "where": {"role": ["pilot"]}},
        "replacements": [{"old": "man", "new": "woman"}],
        "edits": 2,
        "retrieval_choices": 5,
        "etas": [0.0, 0.5, 1.0],
        "settings": {"embedding": stage, "network": stage, "batch": 1},
        "precision": "fp32",
    }
    return TypeAdapter(EvaluationConfig).validate_python(tree | settings)


def test_edits_are_scored_by_retrieval_and_distance(home, tmp_path):
    wanted = config(home)
    evaluate(wanted, tmp_path)
    result = EvaluationResult.read(tmp_path / "evaluation.json")
    retrieved = result.metrics["target_retrieved"]
    assert set(retrieved) == {"edited", "unedited sample", "source"}
    assert retrieved["edited"].n == 2
    both = result.metrics["retrieved_and_nearer"]["edited"].value
    nearer = result.metrics["nearer_to_source_than_unedited"]["edited"].value
    assert both <= min(nearer, retrieved["edited"].value)
    assert image_count(wanted) == 2 * 4
    shown = imagic_table(read("edits", tmp_path))
    assert [name for name, _ in shown.grids] == ["grid_imagic.png"]


def test_words_that_no_caption_has_are_refused(home, tmp_path):
    with pytest.raises(UserError, match=r"replacements: no image has a caption with 'sailor'"):
        evaluate(config(home, replacements=[{"old": "sailor", "new": "cook"}]), tmp_path)
    assert not list(tmp_path.iterdir())
