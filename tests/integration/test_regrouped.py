"""Groups of weights come back by name, also where their order has changed."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes
SETTINGS = {
    f"{precision}-{zero}": (precision, zero)
    for precision, zero in (("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 0),
                            ("bf16", 2), ("bf16", 3))
}  # fmt: skip


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def resumed(request, tmp_path_factory, start_ranks) -> dict[str, dict]:
    file = tmp_path_factory.mktemp("regrouped") / "settings.json"
    common = [f"batch={request.param}", "optimizer.moments=bf16"]
    common += ["optimizer.lr={peak: 0.1, decay: constant}"]
    file.write_text(
        json.dumps(
            [
                [*common, f"engine.precision={precision}", f"engine.zero={zero}"]
                for precision, zero in SETTINGS.values()
            ]
        )
    )
    start_ranks(file, request.param, Path(__file__).with_name("regrouped.py"))
    answers = json.loads(file.with_suffix(".rank0.json").read_text())
    return dict(zip(SETTINGS, answers, strict=True))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_resumed_run_goes_on_bit_for_bit_with_each_groups_own_decay(resumed, setting):
    assert resumed[setting]["decays"] == {"matrices": 0.3, "others": 0.0}
    assert resumed[setting]["alike"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_groups_in_another_order_are_never_taken_for_each_other(resumed, setting):
    assert "the group matrices stands where this run has others" in resumed[setting]["refused"]
