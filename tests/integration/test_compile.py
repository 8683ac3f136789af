"""Compiled blocks train like uncompiled ones, at every ZeRO stage and with checkpointing."""

import json

import pytest

from trainer.tracking.run_log import read_metrics

pytestmark = pytest.mark.processes
COMMON = [
    *("steps=3", "batch=4", "engine.precision=fp32", "data.encoder=null", "model.width=64"),
    *("model.layers=2", "model.heads=2", "model.head_width=32", "model.dropout=0.0"),
    *("model.image_vocab=64", "log.every=1", "log.previews=null", "checkpoint.every=1000"),
]
SETTINGS = {
    "uncompiled": [],
    "zero 0": ["engine.compile=true"],
    "zero 2, checkpointing": [
        *("engine.compile=true", "engine.zero=2", "engine.activation_checkpointing=true")
    ],
    "zero 3": ["engine.compile=true", "engine.zero=3"],
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory, tiny_inputs, train_sessions) -> dict[str, list[float]]:
    root = tmp_path_factory.mktemp("compiled")
    entries = [
        {
            "recipe": "recipes/emoji_prior.yaml",
            "overrides": [*COMMON, *tiny_inputs("emoji_prior"), *settings],
            "directory": str(root / name),
        }
        for name, settings in SETTINGS.items()
    ]
    (root / "sessions.json").write_text(json.dumps(entries))
    train_sessions(root / "sessions.json", 1)
    return {
        name: [
            line["metrics"]["loss/model"] for line in read_metrics(root / name / "metrics.jsonl")
        ]
        for name in SETTINGS
    }


@pytest.mark.parametrize("name", list(SETTINGS)[1:])
def test_compiled_blocks_follow_the_losses_of_uncompiled_ones(losses, name):
    assert len(losses[name]) == 3
    assert losses[name] == pytest.approx(losses["uncompiled"], rel=1e-5)
