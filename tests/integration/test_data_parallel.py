"""Two processes that share a batch train like one that takes it all."""

import json
from pathlib import Path

import pytest
import torch

from data_pipeline.config import DataConfig, Selection
from mezzotint.inference.encoding.embeddings import EmbeddingOptions, encode_embeddings
from models import store
from models.clip import ClipConfig
from trainer.tracking.run_log import read_metrics

pytestmark = pytest.mark.processes
VOCAB = 300
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
    "emoji_dvae": ["model.width=32", "model.initial_width=32", "model.vocab=64"],
    "emoji_prior": ["model.width=64", "model.layers=2", "model.heads=2", "model.head_width=32",
                    "model.dropout=0.0", "model.image_vocab=64", "data.encoder=null"],
    "emoji_base": ["model.width=64", "model.layers=4", "model.heads=2"],
}  # fmt: skip
PRIORS = {
    "emoji_unclip_prior": ["model.width=32", "model.layers=1", "model.heads=2"],
    "emoji_unclip_ar_prior": ["model.width=32", "model.layers=1", "model.heads=2",
                              "model.components=4", "model.levels=4"],
}  # fmt: skip
CLIP = ClipConfig(
    image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=VOCAB, text_length=8,
    text_width=16, text_layers=1, head_width=8, embed=8,
)  # fmt: skip
STAGES = (0, 2, 3)
BY_IMPORTANCE = [*SMALL["emoji_base"], "task.times={kind: importance, steps: 4, history: 1}"]
"""Times that follow the losses, so also those of the other process."""
RUNS = {
    **{(name, stage): (name, settings) for name, settings in SMALL.items() for stage in STAGES},
    ("by importance", 0): ("emoji_base", BY_IMPORTANCE),
    **{(name, stage): (name, settings) for name, settings in PRIORS.items() for stage in (0, 3)},
}
"""Recipe and settings by what is trained and ZeRO stage."""


@pytest.fixture(scope="module")
def prior_inputs(tmp_path_factory, tokenizer_directory) -> list[str]:
    """Overrides of a prior of the embeddings of a tiny CLIP."""
    root = tmp_path_factory.mktemp("embeddings")
    torch.manual_seed(0)
    clip, tokenizer = str(root / "clip"), Path(tokenizer_directory, "tokenizer.model").read_bytes()
    store.save(clip, CLIP, CLIP.build().state_dict(), card="", tokenizer=tokenizer, text_length=8)
    people = (Selection(split="composition", part="test"),)
    options = EmbeddingOptions(text_features=True, normalization="l2_sqrt_d")
    encode_embeddings(DataConfig(url="data/emoji", select=people), clip, str(root / "set"), options)
    return [
        f"data.url={root / 'set'}",
        "data.select=[]",
        f"task.condition.encoder.model={clip}",
        *("model.dim=8", "model.features.width=16", "model.length=8", "model.dropout=0.0"),
    ]


@pytest.fixture(scope="module")
def losses(
    tmp_path_factory, tiny_inputs, prior_inputs, train_sessions
) -> dict[tuple[str, int, int], list[float]]:
    """Loss curves by what is trained, ZeRO stage and number of processes."""
    root = tmp_path_factory.mktemp("parallel")
    found = {}
    for world in (1, 2):
        entries = [
            {
                "recipe": f"recipes/{recipe}.yaml",
                "overrides": [
                    *COMMON,
                    *(prior_inputs if recipe in PRIORS else tiny_inputs(recipe)),
                    *settings,
                    f"engine.zero={stage}",
                ],
                "directory": str(root / f"{name}-{stage}-{world}"),
            }
            for (name, stage), (recipe, settings) in RUNS.items()
        ]
        (root / f"{world}.json").write_text(json.dumps(entries))
        train_sessions(root / f"{world}.json", world)
        for name, stage in RUNS:
            lines = read_metrics(root / f"{name}-{stage}-{world}" / "metrics.jsonl")
            found[name, stage, world] = [line["metrics"]["loss/model"] for line in lines]
    return found


@pytest.mark.parametrize(("name", "stage"), RUNS)
def test_two_processes_follow_the_losses_of_one(losses, name, stage):
    one, two = losses[name, stage, 1], losses[name, stage, 2]
    assert len(one) == len(two) == 20
    assert two == pytest.approx(one, rel=1e-5)


def test_times_by_importance_are_other_times(losses):
    assert losses["by importance", 0, 1] != pytest.approx(losses["emoji_base", 0, 1], rel=1e-3)


@pytest.mark.parametrize("name", SMALL)
def test_every_zero_stage_follows_the_same_losses(losses, name):
    assert losses[name, 2, 1] == pytest.approx(losses[name, 0, 1], rel=1e-5)
    assert losses[name, 3, 1] == pytest.approx(losses[name, 0, 1], rel=1e-5)


@pytest.mark.parametrize("name", PRIORS)
def test_the_partitioned_priors_follow_the_same_losses(losses, name):
    assert losses[name, 3, 1] == pytest.approx(losses[name, 0, 1], rel=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_training_lowers_the_loss(losses, name):
    curve = losses[name, 0, 1]
    assert sum(curve[-5:]) < sum(curve[:5])
