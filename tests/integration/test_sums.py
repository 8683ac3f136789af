"""The gradients of many micro-batches are summed in fp32, whatever the weights are."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes
ROUNDS = 1024
HALVES = ("optimizer.moments=bf16", "engine.master_dtype=bf16")
SETTINGS = {
    **{f"bf16-{zero}": ("bf16", zero, ()) for zero in (0, 1, 2, 3)},
    **{f"fp16-{zero}": ("fp16", zero, ()) for zero in (1, 2)},
    **{f"autocast_bf16-{zero}": ("autocast_bf16", zero, ()) for zero in (0, 2)},
    **{f"halves-{zero}": ("bf16", zero, HALVES) for zero in (1, 3)},
}
NORM = (48 + 4 / 4) ** 0.5 / 16
"""48 gradients of 1/16, and 4 of half of that: only half of the micro-batches have them."""


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def counted(request, tmp_path_factory, start_ranks) -> dict[str, dict]:
    """The norm and the step of an update, by setting."""
    world = request.param
    file = tmp_path_factory.mktemp("sums") / "settings.json"
    # bf16 counts to 256 and fp16 to 2,048, in each process
    rounds = {"fp16": 3 * ROUNDS * world}
    file.write_text(
        json.dumps(
            [
                [
                    *(f"batch={rounds.get(precision, ROUNDS)}", "micro_batch=1"),
                    *(f"engine.precision={precision}", f"engine.zero={zero}"),
                    *("optimizer.lr={peak: 0.01, decay: constant}", "optimizer.max_grad_norm=null"),
                    *more,
                ]
                for precision, zero, more in SETTINGS.values()
            ]
        )
    )
    start_ranks(file, world, Path(__file__).with_name("sums.py"))
    answers = json.loads(file.with_suffix(".rank0.json").read_text())
    return dict(zip(SETTINGS, answers, strict=True))


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_thousand_equal_gradients_count_each(counted, setting):
    assert counted[setting]["grad_norm"] == pytest.approx(NORM, rel=2e-3), counted[setting]
    assert counted[setting]["moved"] > 0
