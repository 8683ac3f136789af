"""Averages by powers of time, beside direct sums over the whole series of weights."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from trainer.averages.config import ExponentialEma, PowerEma, power, width
from trainer.averages.ema import Ema
from trainer.averages.post_hoc_ema import EmaProfile, combine
from trainer.averages.snapshots import Snapshots, synthesize, write_snapshot
from trainer.recipe import load

STEPS = 12
SERIES = torch.randn(STEPS + 1, 3, 4, generator=torch.Generator().manual_seed(0))
"""Weights: at the start, then after every update."""


@dataclass
class Weights:
    """An engine whose weights follow the series."""

    now: dict[str, Tensor] = field(default_factory=lambda: {"inner.weight": SERIES[0].clone()})

    def local_weights(self) -> dict[str, Tensor]:
        return self.now

    def gather_full_state(self, local):
        return {name: value.clone() for name, value in local.items()}


def direct(sigma_rel, update):
    """The sum that defines an average, in fp64."""
    exponent = power(sigma_rel) + 1
    edges = (torch.arange(update + 1, dtype=torch.float64) / update) ** exponent
    return torch.einsum("k,kij->ij", edges.diff(), SERIES[1 : update + 1].double())


def trained(config, root=None, dtype=torch.float32):
    engine = Weights()
    engine.now["inner.weight"] = engine.now["inner.weight"].to(dtype)
    ema = Ema(engine, config)
    snapshots = root and Snapshots(root, config, STEPS, writes=True)
    for update in range(1, STEPS + 1):
        engine.now["inner.weight"] = SERIES[update].to(dtype)
        ema.update()
        if snapshots:
            snapshots.take(update, ema)
    return ema


def test_widths_and_powers_belong_together():
    for sigma_rel in (0.01, 0.05, 0.1, 0.25):
        assert width(power(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-12)
    assert (power(0.05), power(0.1)) == (
        pytest.approx(16.97, abs=0.01),
        pytest.approx(6.94, abs=0.01),
    )
    assert width(0) == pytest.approx(12**-0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_average_is_the_direct_sum_over_all_updates(dtype):
    ema = trained(PowerEma(sigma_rel=(0.05, 0.2)), dtype=dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    for track, sigma_rel in enumerate((0.05, 0.2)):
        got = ema.gather_full_state(track)["inner.weight"].double()
        assert torch.allclose(got, direct(sigma_rel, STEPS), atol=tolerance)
    assert ema.values.keys() == {"inner.weight", "1/inner.weight"}


def test_the_exponential_average_is_what_it_was():
    ema = trained(ExponentialEma(decay=0.5))
    wanted = SERIES[0].clone()
    for update in range(1, STEPS + 1):
        decay = min(0.5, (1 + update) / (10 + update))
        wanted = decay * wanted + (1 - decay) * SERIES[update]
    assert torch.allclose(ema.gather_full_state()["inner.weight"], wanted, atol=1e-6)
    plain = load("recipes/emoji_base.yaml", ["ema={decay: 0.5}"])
    assert plain.ema == ExponentialEma(decay=0.5)


def test_averages_are_restored_and_go_on():
    config = PowerEma(sigma_rel=(0.05, 0.2))
    ema, again = trained(config), Ema(Weights(), config)
    again.restore(ema.values, ema.updates)
    for one in (ema, again):
        one._engine.now = {"inner.weight": torch.ones(3, 4)}
        one.update()
    assert all(
        torch.equal(
            ema.gather_full_state(track)["inner.weight"],
            again.gather_full_state(track)["inner.weight"],
        )
        for track in (0, 1)
    )


@pytest.mark.parametrize("sigma_rel", [0.03, 0.05, 0.12, 0.2, 0.25])
@pytest.mark.parametrize("update", [STEPS, 7])
def test_with_snapshots_of_all_updates_every_average_is_made_exactly(tmp_path, sigma_rel, update):
    trained(PowerEma(sigma_rel=(0.05, 0.2), every=1), tmp_path)
    made = synthesize(tmp_path, sigma_rel, update)
    assert made.combination.error < 1e-9
    assert made.snapshots == 2 * update
    assert torch.allclose(
        made.weights["inner.weight"].double(), direct(sigma_rel, update), atol=1e-4
    )


def test_few_snapshots_make_the_others_nearly():
    few = [EmaProfile(width, update) for width in (0.05, 0.1) for update in range(100, 20001, 1000)]
    errors = {
        width: combine(few, EmaProfile(width, 19100)).error for width in (0.05, 0.07, 0.1, 0.15)
    }
    assert errors[0.05] < 1e-10
    assert errors[0.1] < 1e-10
    assert errors[0.07] < 0.01
    assert errors[0.15] < 0.05
    ends = [EmaProfile(width, 19100) for width in (0.05, 0.1)]
    assert combine(ends, EmaProfile(0.15, 19100)).error > 2 * errors[0.15]


def test_snapshots_are_taken_where_due_and_at_the_end(tmp_path):
    config = PowerEma(sigma_rel=(0.05, 0.1), every=5, stored="fp16")
    trained(config, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        f"step-{update:08d}-{sigma}.safetensors" for update in (5, 10, 12) for sigma in (0.05, 0.1)
    ]
    exact = synthesize(tmp_path, 0.05)
    assert exact.profile == EmaProfile(0.05, STEPS)
    assert torch.allclose(exact.weights["inner.weight"].double(), direct(0.05, STEPS), atol=2e-3)


def test_a_weight_beyond_fp16_is_kept_in_fp32(tmp_path):
    weights = {"large": torch.tensor([1e6, 1.0]), "small": torch.tensor([0.5])}
    write_snapshot(tmp_path, EmaProfile(0.1, 4), weights, torch.float16)
    made = synthesize(tmp_path, 0.1)
    assert made.weights["large"].tolist() == pytest.approx([1e6, 1.0], rel=1e-4)


def test_what_cannot_be_made_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no snapshots of averages; train with ema="):
        synthesize(tmp_path, 0.1)
    trained(PowerEma(every=5), tmp_path)
    with pytest.raises(UserError, match="the snapshots end at update 12, not at 13"):
        synthesize(tmp_path, 0.1, 13)
    with pytest.raises(UserError, match="the first snapshot is of update 5, later than 4"):
        synthesize(tmp_path, 0.1, 4)
    (tmp_path / "step-1.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"step-1.safetensors: is no snapshot .*remove the file"):
        synthesize(tmp_path, 0.1)


@pytest.mark.parametrize(
    ("ema", "fault"),
    [
        ("{kind: power, sigma_rel: [0.3]}", "ema: sigma_rel: each must lie between 0 and 0.28"),
        ("{kind: power, sigma_rel: [0.1, 0.1]}", "ema: sigma_rel names one width more than once"),
        ("{kind: power, decay: 0.9}", "ema.decay: unknown key"),
        ("{dekay: 0.9}", "ema.dekay: unknown key"),
    ],
)
def test_impossible_averages_are_refused_by_their_key(ema, fault):
    with pytest.raises(UserError, match=f"emoji_base.yaml: {fault}"):
        load("recipes/emoji_base.yaml", [f"ema={ema}"])
