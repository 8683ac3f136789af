"""Two processes that share a batch train like one that takes it all."""

import json

import pytest

from trainer.record import read_metrics

pytestmark = pytest.mark.processes
COMMON = [
    "steps=20",
    "batch=8",
    "micro_batch=4",
    "engine.precision=fp32",
    "log.every=1",
    "log.previews=null",
    "checkpoint.every=1000",
]
SMALL = {
    "emoji_dvae": ["model.width=32", "model.first=32", "model.vocab=64"],
    "emoji_prior": ["model.width=64", "model.layers=2", "model.heads=2", "model.head_width=32",
                    "model.dropout=0.0", "model.image_vocab=64", "data.encoder=null"],
    "emoji_base": ["model.width=64", "model.layers=4", "model.heads=2"],
}  # fmt: skip
STAGES = (0, 2, 3)


@pytest.fixture(scope="module")
def losses(
    tmp_path_factory, tiny_inputs, train_sessions
) -> dict[tuple[str, int, int], list[float]]:
    """Loss curves by recipe, ZeRO stage and number of processes."""
    root = tmp_path_factory.mktemp("parallel")
    found = {}
    for world in (1, 2):
        entries = [
            {
                "recipe": f"recipes/{name}.yaml",
                "overrides": [*COMMON, *SMALL[name], *tiny_inputs(name), f"engine.zero={stage}"],
                "directory": str(root / f"{name}-{stage}-{world}"),
            }
            for name in SMALL
            for stage in STAGES
        ]
        (root / f"{world}.json").write_text(json.dumps(entries))
        train_sessions(root / f"{world}.json", world)
        for name in SMALL:
            for stage in STAGES:
                lines = read_metrics(root / f"{name}-{stage}-{world}" / "metrics.jsonl")
                found[name, stage, world] = [line["metrics"]["loss/model"] for line in lines]
    return found


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SMALL)
def test_two_processes_follow_the_losses_of_one(losses, name, stage):
    one, two = losses[name, stage, 1], losses[name, stage, 2]
    assert len(one) == len(two) == 20
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_every_zero_stage_follows_the_same_losses(losses, name):
    assert losses[name, 2, 1] == pytest.approx(losses[name, 0, 1], rel=1e-5)
    assert losses[name, 3, 1] == pytest.approx(losses[name, 0, 1], rel=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_training_lowers_the_loss(losses, name):
    curve = losses[name, 0, 1]
    assert sum(curve[-5:]) < sum(curve[:5])
