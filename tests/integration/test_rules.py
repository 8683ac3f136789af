"""Gradient scales, compression and 16-bit moments in real engines of two processes."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes
WORLD = 2
SMALL = [
    *("model.width=32", "model.layers=2", "model.heads=2", "model.head_width=16"),
    *("model.dropout=0.0", "model.image_vocab=40", "model.text_vocab=30", "model.text_length=6"),
    *("model.grid=[3, 3]", "batch=8", "optimizer.lr={peak: 3e-3, decay: constant}"),
]
SCALES = "engine.gradient_scaling={kind: per_block}"
FULL = "engine.compression={kind: powersgd, rank: 128, errors: fp32}"
LOW = "engine.compression={kind: powersgd, rank: 4}"
FP32, AUTOCAST, BF16 = (f"engine.precision={each}" for each in ("fp32", "autocast_bf16", "bf16"))
CODEC, HALVES = "optimizer.moments=codec_16", "optimizer.moments=bf16"
MASTER = "engine.master_dtype=bf16"
SETTINGS = {
    "plain": [FP32],
    **{f"scales-{zero}": [FP32, SCALES, f"engine.zero={zero}"] for zero in (0, 1, 2, 3)},
    "full": [FP32, FULL],
    "low": [FP32, LOW, SCALES, CODEC],
    **{f"codec-{zero}": [FP32, CODEC, f"engine.zero={zero}"] for zero in (0, 1, 3)},
    **{f"halves-{zero}": [FP32, HALVES, f"engine.zero={zero}"] for zero in (0, 2, 3)},
    **{f"master-{zero}": [BF16, HALVES, MASTER, f"engine.zero={zero}"] for zero in (1, 2, 3)},
    "master-codec-2": [BF16, CODEC, MASTER, "engine.zero=2"],
    "paper": [AUTOCAST, SCALES, CODEC, "engine.fp32_logits=true", "engine.zero=2"],
}
FAULTY = {f"fault-{zero}": [FP32, SCALES, f"engine.zero={zero}"] for zero in (0, 2, 3)}
BRANCH = 2
SETTINGS.update(FAULTY)
RESUMED = ("low", "codec-0", "codec-1", "codec-3", "master-2", "master-codec-2", "paper")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, start_ranks) -> dict[str, dict]:
    """What engines did, by their settings."""
    file = tmp_path_factory.mktemp("rules") / "settings.json"
    entries = [
        {
            "overrides": [*SMALL, *overrides],
            "resumed": name in RESUMED,
            "fault": BRANCH if name in FAULTY else None,
        }
        for name, overrides in SETTINGS.items()
    ]
    file.write_text(json.dumps(entries))
    start_ranks(file, WORLD, Path(__file__).with_name("rules.py"))
    ranks = [json.loads(file.with_suffix(f".rank{n}.json").read_text()) for n in range(WORLD)]
    for one, two in zip(*ranks, strict=True):
        assert one["weights"] == two["weights"]
    return dict(zip(SETTINGS, ranks[0], strict=True))


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_scales_leave_fp32_training_as_it_is_at_every_stage(trained, zero):
    scaled = trained[f"scales-{zero}"]
    assert scaled["losses"] == pytest.approx(trained["plain"]["losses"], rel=1e-5)
    assert scaled["status"]["skipped_updates"] == 0
    assert scaled["status"]["lowest_gradient_scale"] == pytest.approx(2 ** (13 + 6 / 1000))


def test_full_rank_compression_trains_as_without(trained):
    assert trained["full"]["losses"] == pytest.approx(trained["plain"]["losses"], rel=1e-4)


def test_gradients_of_rank_four_train_too(trained):
    assert trained["low"]["losses"][-1] < trained["low"]["losses"][0] - 0.1


@pytest.mark.parametrize(
    "name", [name for name in SETTINGS if name.startswith(("codec", "halves"))]
)
def test_16_bit_moments_follow_32_bit_ones_at_every_stage(trained, name):
    assert trained[name]["losses"] == pytest.approx(trained["plain"]["losses"], rel=5e-3)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name.startswith("master")])
def test_16_bit_master_weights_follow_too(trained, name):
    assert trained[name]["losses"] == pytest.approx(trained["plain"]["losses"], rel=3e-2)


def test_the_papers_numerics_train(trained):
    assert trained["paper"]["losses"] == pytest.approx(trained["plain"]["losses"], rel=2e-2)
    assert trained["paper"]["status"]["skipped_updates"] == 0


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_engine_goes_on_bit_for_bit(trained, name):
    """Weights and averages, with moments as codes, scales and error buffers."""
    assert trained[name]["resumed"] == trained[name]["weights"]


@pytest.mark.parametrize("name", FAULTY)
def test_a_fault_on_one_process_skips_the_update_on_all_and_moves_one_scale(trained, name):
    found = trained[name]
    assert found["before the fault"] == found["after the fault"]
    assert found["status"]["skipped_updates"] == 1
    grown = 2 ** (13 + 5 / 1000)
    wanted = [grown * 2 ** (-0.5 if place == BRANCH else 0.001) for place in range(4)]
    assert found["scales"] == pytest.approx(wanted, rel=1e-12)
