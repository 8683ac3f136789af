"""The pipeline of a cascade of three stages, a few steps each, from images to result page."""

import json
from pathlib import Path

import pytest

from evaluation.result import EvaluationResult
from launch.pipeline.config import TrainStage, load_pipeline, stage_recipe

PIPELINE = "recipes/pipelines/cascade.yaml"
TRAINED = ("base", "upsampler_32", "upsampler_64", "clip")
FEW = "{base: [adult, biking, pouting]}"
SELECT = f"[{{split: composition, part: train, where: {FEW}}}]"
SETTINGS = [
    *(f"stages.{name}.set.steps=2" for name in TRAINED),
    *(f"stages.{name}.set.batch=4" for name in TRAINED),
    *(f"stages.{name}.set.log={{every: 1}}" for name in TRAINED),
    *(f"stages.{name}.set.data.select={SELECT}" for name in TRAINED),
    *(f"stages.{name}.evaluation.reference.where={FEW}" for name in ("samples", "inputs")),
    *(f"stages.{name}.evaluation.system.base_sampling.steps=2" for name in ("samples", "inputs")),
    "stages.base.set.model.layers=2",
    "stages.samples.evaluation.limit={test: 2, train: 2}",
    "stages.samples.evaluation.retrieval_choices=4",
    "stages.inputs.evaluation.limit=3",
]


def test_the_sizes_of_the_stages_meet():
    stages = load_pipeline(PIPELINE).stages
    base, first, second = (
        stage_recipe(stage).model
        for name in TRAINED[:3]
        if isinstance(stage := stages[name], TrainStage)
    )
    assert base.image_size == first.low_size == 16
    assert first.image_size == second.low_size == 32
    assert second.image_size == 64


@pytest.mark.processes
def test_three_stages_are_trained_apart_and_sampled_and_compared_together(tmp_path, run_stages):
    root: Path = run_stages(PIPELINE, tmp_path / "cascade", *SETTINGS)
    for name in TRAINED:
        assert json.loads((root / name / "summary.json").read_text())["steps"] == 2
    protocol = EvaluationResult.read(root / "samples" / "evaluation.json").protocol
    assert protocol["system"]["steps"] == {"base": 2, "upsamplers.0": 8, "upsamplers.1": 8}
    inputs = EvaluationResult.read(root / "inputs" / "evaluation.json")
    assert set(inputs.metrics["red_shift"]) == {"upsamplers.0", "upsamplers.1"}
    page = (root / "index.html").read_text()
    assert "<th>upsamplers.0, level 0</th><th>upsamplers.1, level 0</th>" in page
    assert "is missing" not in page
