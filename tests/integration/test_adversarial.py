"""Two parts with two optimizers go through the same loop as one."""

import json
from pathlib import Path

import pytest
import torch

from trainer.record import read_metrics

pytestmark = pytest.mark.processes

RECIPE = """
name: adversarial_pair
seed: 7
steps: 12
batch: 8
micro_batch: {micro}
model: {{kind: dvae, image_size: 16, vocab: 32, width: 32, first: 32, groups: 2, patch: 1}}
task:
  kind: adversarial
  discriminator: {{width: 8, layers: 2}}
  starts: 4
  weight: 0.1
data:
  url: data/emoji
  select: [{{split: composition, part: train}}]
  image: {{size: 16}}
  memory: true
optimizer: {{lr: {{peak: 1.0e-3}}}}
optimizers: {{discriminator: {{lr: {{peak: 5.0e-4}}, betas: [0.5, 0.9]}}}}
engine: {{zero: {zero}, precision: fp32}}
log: {{every: 1}}
"""


@pytest.fixture(scope="module")
def curves(tmp_path_factory, train_sessions) -> dict[tuple[int, int], list[dict[str, float]]]:
    """Metrics per step by (ZeRO stage, accumulation)."""
    root = tmp_path_factory.mktemp("adversarial")
    entries, found = [], {}
    for zero in (0, 2):
        for accumulation in (1, 4):
            name = f"{zero}-{accumulation}"
            recipe = root / f"{name}.yaml"
            recipe.write_text(RECIPE.format(micro=8 // accumulation, zero=zero))
            entry = {"recipe": str(recipe), "overrides": [], "directory": str(root / name)}
            entries.append(entry)
    (root / "all.json").write_text(json.dumps(entries))
    train_sessions(root / "all.json", 1)
    for zero in (0, 2):
        for accumulation in (1, 4):
            path: Path = root / f"{zero}-{accumulation}" / "metrics.jsonl"
            found[zero, accumulation] = [line["metrics"] for line in read_metrics(path)]
    return found


def test_the_discriminator_waits_for_its_start_and_then_learns(curves):
    losses = [line["loss/discriminator"] for line in curves[0, 1]]
    assert losses[:4] == [0, 0, 0, 0]
    assert all(loss > 0 for loss in losses[4:])
    norms = [line["grad_norm/discriminator"] for line in curves[0, 1]]
    assert norms[:4] == [0, 0, 0, 0]
    assert all(norm > 0 for norm in norms[4:])


def test_each_part_keeps_its_own_optimizer(curves):
    first = curves[0, 1][0]
    assert first["learning_rate/model"] == pytest.approx(1e-3)
    assert first["learning_rate/discriminator"] == pytest.approx(5e-4)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_zero_2_follows_the_losses_of_zero_0(curves, accumulation):
    for name in ("loss/model", "loss/discriminator"):
        sharded = torch.tensor([line[name] for line in curves[2, accumulation]])
        plain = torch.tensor([line[name] for line in curves[0, accumulation]])
        torch.testing.assert_close(sharded, plain, rtol=1e-4, atol=1e-6)


def test_both_parts_lower_their_losses(curves):
    model = [line["reconstruction"] for line in curves[0, 1]]
    assert sum(model[-3:]) < sum(model[:3])
    discriminator = [line["loss/discriminator"] for line in curves[0, 1]]
    assert discriminator[-1] < discriminator[4]
