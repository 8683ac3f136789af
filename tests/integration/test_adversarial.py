"""Two parts with two optimizers go through the same loop as one; codebooks agree on all processes.

The generator is a small VQ-GAN with a codebook of moving averages and an adaptive weight.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mezzotint.common.errors import UserError
from models import store
from trainer.recipe import load
from trainer.tracking.run_log import read_metrics

pytestmark = pytest.mark.processes

RECIPE = """
name: adversarial_pair
seed: 7
steps: 12
batch: 8
micro_batch: {micro}
model:
  kind: autoencoder
  image_size: 16
  channels: 8
  pyramid: {{kind: strided, width: 32, halvings: 2, blocks: 1, residual_width: 16}}
  bottleneck: {{kind: ema_vq, codes: 16}}
task:
  kind: adversarial
  discriminator: {{width: 8, layers: 2}}
  perceptual: {{kind: random, widths: [8, 16], weight: 0.1}}
  start_step: 4
  weight: 0.5
data:
  url: data/emoji
  select: [{{split: composition, part: train}}]
  image: {{size: 16}}
  cache_in_memory: true
optimizer: {{lr: {{peak: 1.0e-3}}}}
optimizers: {{discriminator: {{lr: {{peak: 5.0e-4}}, betas: [0.5, 0.9]}}}}
engine: {{zero: {zero}, zero_per_part: {zeros}, precision: fp32}}
log: {{every: 1}}
checkpoint: {{every: 6}}
"""
# ZeRO stages of the generator and of the discriminator, and samples per forward
STAGES = [(0, 0), (2, 2), (3, 3), (0, 3), (3, 0)]
ONE_PROCESS = [((0, 0), 8), *((stages, 4) for stages in STAGES)]
TWO_PROCESSES = [((2, 2), 4), ((3, 3), 4)]


@pytest.fixture(scope="module")
def root(tmp_path_factory, train_sessions) -> Path:
    """Directories of finished runs, named by stages, micro-batch and number of processes."""
    root = tmp_path_factory.mktemp("adversarial")
    for world, settings in ((1, ONE_PROCESS), (2, TWO_PROCESSES)):
        entries = []
        for (first, second), micro in settings:
            name = f"{first}{second}-{micro}-{world}"
            recipe = root / f"{name}.yaml"
            zeros = f"{{discriminator: {second}}}"
            recipe.write_text(RECIPE.format(micro=micro, zero=first, zeros=zeros))
            directory = str(root / name)
            entries.append({"recipe": str(recipe), "overrides": [], "directory": directory})
        (root / f"{world}.json").write_text(json.dumps(entries))
        train_sessions(root / f"{world}.json", world)
    resume(root, ["00-8-1", "33-4-1"], train_sessions)
    return root


def resume(root: Path, names: list[str], train_sessions) -> None:
    """Copies of finished runs, put back to their checkpoint of step 6, train to their end again."""
    entries = []
    for name in names:
        copy = root / f"{name}-again"
        shutil.copytree(root / name, copy)
        for late in ("checkpoints/step-00000012", "model"):
            shutil.rmtree(copy / late)
        (copy / "summary.json").unlink()
        recipe = str(root / f"{name}.yaml")
        entries.append({"recipe": recipe, "overrides": [], "directory": str(copy)})
    (root / "again.json").write_text(json.dumps(entries))
    train_sessions(root / "again.json", 1)


def curve(root: Path, name: str, metric: str) -> list[float]:
    return [line["metrics"][metric] for line in read_metrics(root / name / "metrics.jsonl")]


def test_the_discriminator_waits_for_its_start_and_then_learns(root):
    losses = curve(root, "00-8-1", "loss/discriminator")
    assert losses[:4] == [0, 0, 0, 0]
    assert all(loss > 0 for loss in losses[4:])
    norms = curve(root, "00-8-1", "grad_norm/discriminator")
    assert norms[:4] == [0, 0, 0, 0]
    assert all(norm > 0 for norm in norms[4:])


def test_each_part_keeps_its_own_optimizer(root):
    assert curve(root, "00-8-1", "learning_rate/model")[0] == pytest.approx(1e-3)
    assert curve(root, "00-8-1", "learning_rate/discriminator")[0] == pytest.approx(5e-4)


@pytest.mark.parametrize("metric", ["loss/model", "loss/discriminator", "perplexity"])
@pytest.mark.parametrize("stages", ["22", "33", "03", "30"])
def test_every_pair_of_zero_stages_follows_the_same_losses(root, stages, metric):
    sharded = torch.tensor(curve(root, f"{stages}-4-1", metric))
    plain = torch.tensor(curve(root, "00-4-1", metric))
    torch.testing.assert_close(sharded, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("metric", ["loss/model", "loss/discriminator", "perplexity"])
@pytest.mark.parametrize("stages", ["22", "33"])
def test_two_processes_follow_the_losses_of_one(root, stages, metric):
    two = torch.tensor(curve(root, f"{stages}-4-2", metric))
    one = torch.tensor(curve(root, f"{stages}-4-1", metric))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def test_processes_share_one_codebook_and_hand_it_over(root):
    one, two = (store.load(str(root / f"22-4-{world}" / "model")) for world in (1, 2))
    torch.testing.assert_close(
        one.bottleneck.codebook, two.bottleneck.codebook, rtol=1e-4, atol=1e-5
    )
    assert float(one.bottleneck.counts.sum()) > 0


@pytest.mark.parametrize("name", ["00-8-1", "33-4-1"])
def test_a_resumed_run_ends_with_the_same_codebook_and_weights(root, name):
    whole = store.load(str(root / name / "model")).state_dict()
    again = store.load(str(root / f"{name}-again" / "model")).state_dict()
    for key, value in whole.items():
        torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-6)


def test_both_parts_lower_their_losses(root):
    model = curve(root, "00-8-1", "reconstruction")
    assert sum(model[-3:]) < sum(model[:3])
    discriminator = curve(root, "00-8-1", "loss/discriminator")
    assert discriminator[-1] < discriminator[4]


def test_a_stage_for_a_part_that_is_not_there_is_refused(tmp_path):
    from trainer.engine_config import prepare

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(micro=8, zero=0, zeros="{critic: 2}"))
    loaded = load(recipe)
    with torch.device("meta"):
        parts = loaded.task.build(loaded.model.build()).parts()
    with pytest.raises(UserError, match=r"engine\.zero_per_part\.critic: no such part"):
        prepare(parts, loaded)
