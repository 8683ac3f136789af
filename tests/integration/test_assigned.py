"""Weights that an engine is given later are those that it trains, at every ZeRO stage."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes
SETTINGS = {
    f"{precision}-{zero}": (precision, zero)
    for precision in ("fp32", "bf16", "autocast_bf16")
    for zero in (0, 1, 2, 3)
}


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def compared(request, tmp_path_factory, start_ranks) -> dict[str, dict]:
    file = tmp_path_factory.mktemp("assigned") / "settings.json"
    common = ["batch=4", "micro_batch=2", "optimizer.lr={peak: 0.1, decay: constant}"]
    if request.param == 1:
        common[0] = "batch=2"
    file.write_text(
        json.dumps(
            [
                [*common, f"engine.precision={precision}", f"engine.zero={zero}"]
                for precision, zero in SETTINGS.values()
            ]
        )
    )
    start_ranks(file, request.param, Path(__file__).with_name("assigned.py"))
    answers = json.loads(file.with_suffix(".rank0.json").read_text())
    return dict(zip(SETTINGS, answers, strict=True))


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_engine_trains_the_weights_that_it_was_given_later(compared, setting):
    found = compared[setting]
    assert found["assigned"]
    assert found["moved"]
    assert found["trained alike"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_swapping_averages_in_and_out_leaves_training_as_it_is(compared, setting):
    assert compared[setting]["swapped back"]
