"""What `check` says of memory and disk, against engines of two processes that are weighed."""

import json

import pytest
import torch

from launch.footprint import (
    BUCKET,
    Footprint,
    Sizes,
    checkpoint_bytes,
    footprint,
    sizes,
    stored_bytes,
)
from trainer.recipe import load

pytestmark = pytest.mark.processes
WORLD = 2
# two heads of an odd number of weights, so that shares must be padded
SMALL = [
    *("model.width=256", "model.layers=2", "model.heads=4", "model.dropout=0.0"),
    *("model.image_vocab=299", "model.text_vocab=301", "model.text_length=8", "model.grid=[4, 4]"),
    *("batch=8", "micro_batch=2", "optimizer.lr.peak=1e-3"),
]
SETTINGS = [
    *(("fp32", 0), ("fp32", 2), ("fp32", 3)),
    *(("bf16", 0), ("bf16", 1), ("bf16", 3)),
    *(("autocast_bf16", 2), ("autocast_bf16", 3)),
]


def overrides(precision: str, zero: int) -> list[str]:
    return [*SMALL, f"engine.precision={precision}", f"engine.zero={zero}"]


@pytest.fixture(scope="module")
def weighed(tmp_path_factory, start_ranks, footprints_file) -> dict[tuple[str, int], list[dict]]:
    """What each of two processes holds, by precision and stage."""
    file = tmp_path_factory.mktemp("weighed") / "settings.json"
    file.write_text(json.dumps([overrides(*setting) for setting in SETTINGS]))
    start_ranks(file, WORLD, footprints_file)
    ranks = [json.loads(file.with_suffix(f".rank{n}.json").read_text()) for n in range(WORLD)]
    return dict(zip(SETTINGS, zip(*ranks, strict=True), strict=True))


@pytest.fixture(scope="module")
def part() -> Sizes:
    with torch.device("meta"):
        return sizes(load("recipes/emoji_prior.yaml", SMALL).model.build())


def said(part: Sizes, precision: str, zero: int) -> Footprint:
    return footprint(part, zero=zero, precision=precision, world=WORLD, averaged=True)


@pytest.mark.parametrize("setting", SETTINGS)
def test_weights_states_and_averages_have_exactly_the_bytes_that_check_names(
    weighed, part, setting
):
    expected = said(part, *setting)
    for rank in weighed[setting]:
        for line in ("weights", "master", "moments", "averages"):
            assert rank[line] == getattr(expected, line), line


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_else_is_held_between_updates(weighed, part, setting):
    """ZeRO-3 keeps its gradients' place, its buckets and small weights whole for good."""
    precision, zero = setting
    expected = said(part, precision, zero)
    held = expected.weights + expected.master + expected.moments + expected.averages
    if zero == 3:
        held += expected.gradients + expected.buckets + part.small * stored_bytes(precision)
    for rank in weighed[setting]:
        assert rank["held"] == pytest.approx(held, abs=4096)


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s[1] < 3])
def test_gradients_are_whole_or_the_processes_own_share(weighed, part, setting):
    """Of a weight that two shares cut, both keep the whole gradient."""
    expected = said(part, *setting)
    cut = max(part.weights) * stored_bytes(setting[0])
    for rank in weighed[setting]:
        assert expected.gradients - 4096 <= rank["gradients"] <= expected.gradients + cut + 4096


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_process_never_holds_more_than_check_names(weighed, part, setting):
    expected = said(part, *setting)
    activations = 1_000_000
    for rank in weighed[setting]:
        for moment in ("backward", "gradients", "update"):
            assert rank["held"] + rank[moment] <= expected.total + activations, moment


@pytest.mark.parametrize("setting", [s for s in SETTINGS if 0 < s[1] < 3])
def test_backward_reserves_the_buckets(weighed, part, setting):
    expected = said(part, *setting)
    assert expected.buckets >= BUCKET * 2
    for rank in weighed[setting]:
        assert expected.buckets <= rank["backward"] <= expected.buckets * 1.02


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_checkpoint_takes_the_disk_that_check_names(weighed, part, setting):
    precision, zero = setting
    expected = checkpoint_bytes(part, zero=zero, precision=precision, averaged=True)
    assert weighed[setting][0]["checkpoint"] == pytest.approx(expected, rel=0.01)
