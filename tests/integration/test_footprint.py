"""What `check` says of memory and disk, against engines of two processes that are weighed."""

import json

import pytest
import torch

from trainer.memory_estimate import (
    BUCKET,
    MemoryEstimate,
    Sizes,
    States,
    checkpoint_bytes,
    estimate_memory,
    sizes,
    states,
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
PLAIN = {"moments": "fp32", "master": "fp32", "rank": None}
CODEC, HALVES = {**PLAIN, "moments": "codec_16"}, {**PLAIN, "moments": "bf16", "master": "bf16"}
SETTINGS = {
    "fp32-0": ("fp32", 0, PLAIN),
    "fp32-0-powersgd": ("fp32", 0, {**CODEC, "rank": 8}),
    "fp32-3-codec": ("fp32", 3, CODEC),
    "bf16-0": ("bf16", 0, PLAIN),
    "bf16-1-codec": ("bf16", 1, CODEC),
    "bf16-2-halves": ("bf16", 2, HALVES),
    "bf16-3": ("bf16", 3, PLAIN),
    "bf16-3-halves": ("bf16", 3, HALVES),
    "autocast-2": ("autocast_bf16", 2, PLAIN),
    "autocast-3": ("autocast_bf16", 3, PLAIN),
}


def overrides(name: str) -> list[str]:
    precision, zero, states = SETTINGS[name]
    rank = states["rank"]
    return [
        *SMALL,
        f"engine.precision={precision}",
        f"engine.zero={zero}",
        f"engine.master_dtype={states['master']}",
        f"optimizer.moments={states['moments']}",
        *([f"engine.compression={{kind: powersgd, rank: {rank}}}"] if rank else []),
    ]


@pytest.fixture(scope="module")
def weighed(tmp_path_factory, start_ranks, footprints_file) -> dict[str, list[dict]]:
    """What each of two processes holds, by setting."""
    file = tmp_path_factory.mktemp("weighed") / "settings.json"
    file.write_text(json.dumps([overrides(name) for name in SETTINGS]))
    start_ranks(file, WORLD, footprints_file)
    ranks = [json.loads(file.with_suffix(f".rank{n}.json").read_text()) for n in range(WORLD)]
    return dict(zip(SETTINGS, zip(*ranks, strict=True), strict=True))


@pytest.fixture(scope="module")
def part() -> Sizes:
    with torch.device("meta"):
        return sizes(load("recipes/emoji_prior.yaml", SMALL).model.build())


def how(name: str) -> States:
    recipe = load("recipes/emoji_prior.yaml", overrides(name))
    return states(recipe, "model", recipe.engine.precision)


def said(part: Sizes, name: str) -> MemoryEstimate:
    return estimate_memory(part, how(name), WORLD)


def at(*stages: int) -> list[str]:
    return [name for name, (_, zero, _) in SETTINGS.items() if zero in stages]


def test_every_stage_and_precision_starts_from_the_same_weights_bit_for_bit(weighed, part):
    initial = {rank["initial"] for ranks in weighed.values() for rank in ranks}
    assert len(initial) == 1


@pytest.mark.parametrize("setting", SETTINGS)
def test_weights_states_and_averages_have_exactly_the_bytes_that_check_names(
    weighed, part, setting
):
    expected = said(part, setting)
    for rank in weighed[setting]:
        for line in ("weights", "master", "moments", "averages"):
            assert rank[line] == getattr(expected, line), line


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_else_is_held_between_updates(weighed, part, setting):
    """ZeRO-3 keeps its gradients' place, its buckets and small weights whole for good."""
    expected = said(part, setting)
    held = expected.weights + expected.master + expected.moments + expected.averages
    held += expected.errors
    if setting in at(3):
        held += expected.gradients + expected.buckets + part.small * how(setting).number
    bases = 100_000 if how(setting).errors else 0  # compression's, of rank 8
    for rank in weighed[setting]:
        if "autocast" in setting:  # one bucket serves where no layer's gradients travel as bf16
            assert rank["held"] <= held + 4096
        else:
            assert rank["held"] == pytest.approx(held, abs=4096 + bases)


@pytest.mark.parametrize("setting", [name for name in at(0, 1, 2) if not how(name).errors])
def test_gradients_are_whole_or_the_processes_own_share(weighed, part, setting):
    """Of a weight that two shares cut, both keep the whole gradient.

    Whole sums of 16-bit ones are reduced at the update: the bucket is still there.
    """
    expected = said(part, setting)
    cut = max(part.weights) * how(setting).number
    bucket = expected.buckets if setting in at(1) and how(setting).accumulates(WORLD) else 0
    for rank in weighed[setting]:
        found = rank["gradients"] - bucket
        assert expected.gradients - 4096 <= found <= expected.gradients + cut + 4096


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_process_never_holds_more_than_check_names(weighed, part, setting):
    expected = said(part, setting)
    activations = 1_000_000
    for rank in weighed[setting]:
        for moment in ("backward", "gradients", "update"):
            assert rank["held"] + rank[moment] <= expected.total + activations, moment


@pytest.mark.parametrize("setting", at(1, 2))
def test_backward_reserves_the_buckets(weighed, part, setting):
    expected = said(part, setting)
    assert expected.buckets >= BUCKET * 2
    for rank in weighed[setting]:
        assert rank["backward"] <= expected.buckets * 1.02
        if "autocast" not in setting:  # there one bucket serves or two, by the layers' kinds
            assert expected.buckets <= rank["backward"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_checkpoint_takes_the_disk_that_check_names(weighed, part, setting):
    expected = checkpoint_bytes(part, how(setting), WORLD)
    assert weighed[setting][0]["checkpoint"] == pytest.approx(expected, rel=0.01)
