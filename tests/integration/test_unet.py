"""The UNet trains by its task, however it is shared, and with activation checkpointing."""

import json

import pytest

from trainer.tracking.run_log import read_metrics

pytestmark = pytest.mark.processes
COMMON = [
    *("steps=8", "batch=8", "micro_batch=4", "engine.precision=fp32", "ema=null"),
    "optimizer.lr={peak: 1e-3}",
    *("log.every=1", "log.previews=null", "checkpoint.every=1000"),
]
UNET = "kind: unet, channels: 16, multipliers: [1, 2], depth: 1, groups: 8, head_width: 8"
TEXT = "text: {vocab: 300, length: 12, width: 32, layers: 2, heads: 2}"
MODELS = {
    "captions": ("emoji_base", f"{{{UNET}, image_size: 32, attention: [16], {TEXT}}}"),
    "low_resolution": (
        "emoji_upsampler",
        f"{{{UNET}, image_size: 64, attention: [], low_resolution: {{size: 32}}}}",
    ),
    "prior": (
        "emoji_prior",
        "{kind: prior, text_vocab: 300, text_length: 16, image_vocab: 64, grid: [8, 8], width: 64,"
        " layers: 2, heads: 2, head_width: 32, dropout: 0.1}",
    ),
}
WAYS = {
    "whole": (1, ["engine.zero=0"]),
    "sharded": (2, ["engine.zero=3", "engine.activation_checkpointing=true"]),
    "autocast": (1, ["engine.zero=0", "engine.precision=autocast_bf16"]),
}


@pytest.fixture(scope="module")
def losses(
    tmp_path_factory, tokenizer_directory, token_set, train_sessions
) -> dict[tuple[str, str], list[float]]:
    """Loss curves by model and way of training."""
    root = tmp_path_factory.mktemp("unet")
    for world in (1, 2):
        entries = [
            {
                "recipe": f"recipes/{recipe}.yaml",
                "overrides": [
                    *COMMON,
                    f"model={model}",
                    *([] if name == "prior" else ["task.weight={low: 1e-9, high: 1e9}"]),
                    *(
                        []
                        if name == "low_resolution"
                        else [f"data.text.tokenizer={tokenizer_directory}"]
                    ),
                    *([f"data.url={token_set}", "data.encoder=null"] if name == "prior" else []),
                    *overrides,
                ],
                "directory": str(root / f"{name}-{way}"),
            }
            for name, (recipe, model) in MODELS.items()
            for way, (processes, overrides) in WAYS.items()
            if processes == world
        ]
        (root / f"{world}.json").write_text(json.dumps(entries))
        train_sessions(root / f"{world}.json", world)
    return {
        (name, way): [
            line["metrics"]["loss/model"]
            for line in read_metrics(root / f"{name}-{way}" / "metrics.jsonl")
        ]
        for name in MODELS
        for way in WAYS
    }


@pytest.mark.parametrize("name", MODELS)
def test_sharding_and_computing_again_change_no_loss(losses, name):
    assert len(losses[name, "whole"]) == 8
    assert losses[name, "sharded"] == pytest.approx(losses[name, "whole"], rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_training_lowers_the_loss(losses, name):
    curve = losses[name, "whole"]
    assert sum(curve[-3:]) < sum(curve[:3])


@pytest.mark.parametrize("name", MODELS)
def test_bf16_products_follow_the_same_losses_closely(losses, name):
    assert losses[name, "autocast"] == pytest.approx(losses[name, "whole"], rel=0.02)
