"""Two processes that share a batch train like one that takes it all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.training import free_port, wait
from trainer.tracking import read_metrics

pytestmark = pytest.mark.processes
SESSIONS = Path(__file__).with_name("sessions.py")
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
def losses(tmp_path_factory, tiny_inputs) -> dict[tuple[str, int, int], list[float]]:
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
        start(root / f"{world}.json", world)
        for name in SMALL:
            for stage in STAGES:
                lines = read_metrics(root / f"{name}-{stage}-{world}" / "metrics.jsonl")
                found[name, stage, world] = [line["metrics"]["loss/model"] for line in lines]
    return found


def start(file: Path, world: int) -> None:
    """Run a file of sessions in `world` processes that form one group."""
    environment = {
        **os.environ,
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    logs = [file.with_suffix(f".rank{rank}.log") for rank in range(world)]
    ranks = []
    for rank, log in enumerate(logs):
        with log.open("w") as output:
            command = [sys.executable, str(SESSIONS), str(file)]
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(
                subprocess.Popen(command, env=own, stdout=output, stderr=subprocess.STDOUT)
            )
    assert wait(ranks) == 0, logs[0].read_text()[-3000:]


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
