"""Which system of a pipeline's run is sampled."""

import pytest
import yaml

from mezzotint.inference.model_lookup import PIPELINE, default_system

UNCLIP = {"kind": "unclip", "clip": "${clip}/model", "decoder": "${decoder}/model"}


@pytest.mark.parametrize(
    ("stages", "wanted"),
    [
        ({"embeddings": "embedding_prior", "samples": "text_to_image"}, "samples"),
        ({"embeddings": "embedding_prior", "edits": "edits"}, "embeddings"),
        ({"samples": "text_to_image", "cascade": "text_to_image"}, "cascade"),
        ({}, "cascade"),
    ],
)
def test_a_run_s_system_is_the_cascade_or_one_whose_images_are_evaluated(tmp_path, stages, wanted):
    tree = {name: {"evaluation": {"kind": kind, "system": UNCLIP}} for name, kind in stages.items()}
    (tmp_path / PIPELINE).write_text(yaml.safe_dump({"stages": tree}, sort_keys=False))
    assert default_system(tmp_path) == wanted
