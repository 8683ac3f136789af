"""The optimizer inside backward in a real engine: its losses, its bytes, and resuming."""

import json
from pathlib import Path

import pytest
import torch

from trainer.memory_estimate import checkpoint_bytes, estimate_memory, sizes, states
from trainer.recipe import Recipe, load

pytestmark = pytest.mark.processes
PRIOR = "recipes/emoji_prior.yaml"
SMALL = [
    *("model.width=256", "model.layers=2", "model.heads=4", "model.dropout=0.0"),
    *("model.image_vocab=40", "model.text_vocab=30", "model.text_length=6", "model.grid=[3, 3]"),
    *(
        "batch=8",
        "engine.zero=0",
        "optimizer.lr={peak: 1e-3, decay: constant}",
        "optimizer.max_grad_norm=null",
    ),
]
INSIDE = ["engine.precision=bf16", "engine.update=in_backward", "optimizer.moments=bf16"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, start_ranks) -> list[dict]:
    """With fp32 states, and inside backward."""
    file = tmp_path_factory.mktemp("inside") / "settings.json"
    settings = (["engine.precision=fp32"], INSIDE)
    entries = [
        {"overrides": [*SMALL, *each], "resumed": each is INSIDE, "fault": None}
        for each in settings
    ]
    file.write_text(json.dumps(entries))
    start_ranks(file, 1, Path(__file__).with_name("rules.py"))
    return json.loads(file.with_suffix(".rank0.json").read_text())


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load(PRIOR, [*SMALL, *INSIDE])


@pytest.fixture(scope="module")
def weighed(tmp_path_factory, start_ranks, footprints_file) -> dict[str, int]:
    file = tmp_path_factory.mktemp("weighed") / "settings.json"
    file.write_text(json.dumps([[*SMALL, *INSIDE]]))
    start_ranks(file, 1, footprints_file)
    return json.loads(file.with_suffix(".rank0.json").read_text())[0]


def test_it_trains_as_with_fp32_states(trained):
    plain, inside = trained
    assert inside["losses"] == pytest.approx(plain["losses"], rel=2e-2)
    assert inside["losses"][-1] < inside["losses"][0] - 0.1
    assert inside["status"]["grad_norm"] == pytest.approx(plain["status"]["grad_norm"], rel=0.2)


def test_a_resumed_engine_goes_on_bit_for_bit(trained):
    assert trained[1]["resumed"] == trained[1]["weights"]


def test_six_bytes_a_weight_are_held_and_check_names_them(weighed, recipe):
    with torch.device("meta"):
        part = sizes(recipe.model.build())
    how = states(recipe, "model", "bf16")
    expected = estimate_memory(part, how, 1)
    assert (weighed["weights"], weighed["moments"]) == (2 * part.total, 4 * part.total)
    assert (expected.weights, expected.moments) == (2 * part.total, 4 * part.total)
    assert weighed["master"] == expected.master == 0
    held = expected.weights + expected.moments + expected.averages
    assert weighed["held"] == pytest.approx(held, abs=4096)
    assert weighed["checkpoint"] == pytest.approx(checkpoint_bytes(part, how, 1), rel=0.02)


def test_after_backward_no_gradient_is_left_and_within_it_one_layers(weighed, recipe):
    with torch.device("meta"):
        expected = estimate_memory(sizes(recipe.model.build()), states(recipe, "model", "bf16"), 1)
    assert weighed["gradients"] <= 4096
    assert weighed["backward"] <= expected.gradients + 1_000_000  # and activations
    assert weighed["backward"] + weighed["held"] <= expected.total + 1_000_000
