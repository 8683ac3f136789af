"""Training stops where a number is not finite, and leaves a checkpoint that is."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes
SOUND = ["latest", "step-00000005"]
KEPT = "the checkpoint of step 5 is finite: the same command resumes from it; "
"""The step before a fault at step 6 or later, with one every 5."""
COLD = "task.temperature={kind: linear, start: 1.0, end: 0.0, steps: 6}"
POWER = "ema={kind: power, sigma_rel: [0.1], every: 8}"
HALF = "engine.precision=fp16"
ENTRIES = {
    "a schedule that divides by 0": {"overrides": [COLD], "again": True},
    "a loss": {"fault": "spoil_loss", "again": True},
    "a loss under ZeRO 3": {"fault": "spoil_loss", "overrides": ["engine.zero=3"]},
    "a gradient": {"fault": "spoil_gradient"},
    "the last gradient": {"fault": "spoil_gradient", "step": 12},
    "an average": {"fault": "spoil_average"},
    "a moment": {"fault": "spoil_moment"},
    "a moment under ZeRO 3": {"fault": "spoil_moment", "overrides": ["engine.zero=3"]},
    "a weight": {"fault": "spoil_last_weight", "step": 10},
    "a signal": {"fault": "spoil_loss_and_signal", "overrides": ["checkpoint.keep=1"]},
    "before any checkpoint": {"fault": "spoil_loss", "step": 2, "again": True},
    "a snapshot": {"fault": "spoil_loss", "overrides": [POWER]},
    "a preview": {"fault": "spoil_preview", "overrides": ["log.previews=12"]},
    "a spoiled checkpoint": {"fault": "spoil_loss", "unchecked": True, "again": True},
    "spoiled checkpoints": {"fault": "spoil_loss", "unchecked": True, "again": True, "step": 3},
    "fp16": {"fp16": True, "overrides": [HALF, "engine.zero=2"]},
    **{
        f"fp16 that never fits under ZeRO {zero}": {
            "fault": "spoil_gradients", "fp16": True,
            "overrides": [HALF, f"engine.zero={zero}", "steps=60", "batch=4"],
        }
        for zero in (0, 2)
    },
}  # fmt: skip
SHARED = {
    "a loss of one process": {"fault": "spoil_loss", "rank": 1},
    "a loss of one process under ZeRO 3": {
        "fault": "spoil_loss", "rank": 1, "overrides": ["engine.zero=3"]
    },
    "a shard's moment": {"fault": "spoil_moment", "rank": 1, "overrides": ["engine.zero=2"]},
    "an average of one process": {
        "fault": "spoil_average", "rank": 1, "overrides": ["engine.zero=3"]
    },
    "a signal to one process": {"fault": "spoil_loss_and_signal", "rank": 1},
}  # fmt: skip


def outcomes(root: Path, start_ranks, entries: dict, world: int) -> dict[str, dict]:
    file = root / "faults.json"
    file.write_text(json.dumps(list(entries.values())))
    start_ranks(file, world, Path(__file__).with_name("faults.py"))
    ranks = [json.loads(file.with_suffix(f".rank{n}.json").read_text()) for n in range(world)]
    assert all(
        [each["said"] for each in rank] == [each["said"] for each in ranks[0]] for rank in ranks
    )
    return dict(zip(entries, ranks[0], strict=True))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, start_ranks) -> dict[str, dict]:
    """What one process said and left, by fault."""
    return outcomes(tmp_path_factory.mktemp("alone"), start_ranks, ENTRIES, 1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, start_ranks) -> dict[str, dict]:
    """What two processes said and left, by fault."""
    return outcomes(tmp_path_factory.mktemp("shared"), start_ranks, SHARED, 2)


SAID = {
    "a schedule that divides by 0": "loss/model is not finite at step 7; ",
    "a loss": "loss/model is not finite at step 7; ",
    "a loss under ZeRO 3": "loss/model is not finite at step 7; ",
    "a gradient": "loss/model is not finite at step 8; ",
    "an average": "average of encoder.blocks.input.w of model is not finite at step 10; ",
    "a moment": "optimizer state of encoder.blocks.input.w, exp_avg_sq, of model is not finite at "
    "step 10; ",
    "a moment under ZeRO 3": "optimizer state of group 0, exp_avg_sq, of model is not finite at "
    "step 10; ",
    "a weight": "weight decoder.blocks.output.conv.b of model is not finite at step 10; ",
    "a signal": "loss/model is not finite at step 7; ",
    "a snapshot": "loss/model is not finite at step 7; ",
}


@pytest.mark.parametrize("name", SAID)
def test_training_stops_with_the_step_and_what_is_not_finite(alone, name):
    found = alone[name]
    assert found["said"].startswith(SAID[name] + KEPT)
    assert found["checkpoints"] == SOUND
    assert found["model"] == found["averages"] == []


def test_a_fault_in_the_last_update_is_no_model(alone):
    found = alone["the last gradient"]
    assert found["said"].startswith(
        "weight encoder.blocks.input.w of model is not finite at step 12 (the gradient of model is "
        "not finite at step 12); the checkpoint of step 10 is finite: "
    )
    assert found["checkpoints"] == [*SOUND, "step-00000010"]
    assert found["model"] == []


def test_the_same_command_resumes_and_meets_a_fault_of_the_settings_again(alone):
    found = alone["a schedule that divides by 0"]
    assert found["again"] == found["said"]
    assert found["left again"]["checkpoints"] == SOUND


def test_the_same_command_resumes_past_a_fault_that_is_gone(alone):
    assert alone["a loss"]["again"] == "finished"


def test_without_a_checkpoint_the_same_command_starts_over(alone):
    found = alone["before any checkpoint"]
    assert found["said"].startswith(
        "loss/model is not finite at step 2; no checkpoint was saved before that: the same command "
        "starts from step 0; "
    )
    assert (found["checkpoints"], found["again"]) == ([], "finished")


def test_a_preview_that_is_not_finite_is_left_out(alone):
    found = alone["a preview"]
    assert found["said"] == "finished"
    assert found["previews"] == ["original-step-00000012.png", "reconstruction-step-00000012.png"]


def test_a_checkpoint_with_non_finite_numbers_is_passed_over(alone):
    found = alone["a spoiled checkpoint"]
    assert found["checkpoints"] == [*SOUND, "step-00000010"]
    assert found["again"] == "finished"


def test_only_checkpoints_with_non_finite_numbers_are_refused(alone):
    found = alone["spoiled checkpoints"]
    assert "no checkpoint can be used; restore one from a backup, or remove" in found["again"]


def test_skipped_updates_of_fp16_are_no_fault(alone):
    assert alone["fp16"]["said"] == "finished"


@pytest.mark.parametrize("zero", [0, 2])
def test_a_loss_scale_that_has_reached_its_minimum_is_one(alone, zero):
    found = alone[f"fp16 that never fits under ZeRO {zero}"]
    assert found["said"].startswith("the gradients of model are not finite at step 2")
    assert " updates were skipped; the checkpoint of step 20 is finite: " in found["said"]


@pytest.mark.parametrize("name", [name for name in SHARED if "loss" in name or "signal" in name])
def test_a_fault_of_one_process_stops_all_and_is_said_with_its_rank(shared, name):
    found = shared[name]
    assert found["said"].startswith(f"loss/model is not finite at step 7 on rank 1; {KEPT}")
    assert found["checkpoints"] == SOUND


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a shard's moment", "optimizer state of group 0, exp_avg_sq, of model"),
        ("an average of one process", "average of encoder.blocks.input.w of model"),
    ],
)
def test_a_shard_that_is_not_finite_is_named_by_all(shared, name, start):
    found = shared[name]
    assert found["said"].startswith(f"{start} is not finite at step 10; {KEPT}")
    assert found["checkpoints"] == SOUND
