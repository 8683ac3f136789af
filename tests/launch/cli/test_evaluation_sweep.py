"""`mezzotint evaluate --sweep`: a table of settings, and the best of them."""

import json

import pytest

from evaluation.metrics.fid import FrechetDistance
from evaluation.metrics.intervals import Score
from evaluation.result import EvaluationResult
from launch import errors, evaluation_sweep

YAML = """\
kind: text_to_image
name: small
clip: clip
system:
  kind: cascade
  base: base
  upsamplers: [first, second]
  upsampler_sampling: [{steps: 2}, {steps: 2}]
reference: {url: data}
"""
LEVEL = "system.upsampler_sampling.1.level"


@pytest.fixture
def sweep(mezzotint, monkeypatch, tmp_path):
    """The command; evaluations give a match that is best at level 0.05, and are listed."""
    (tmp_path / "evaluation.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    ran = []

    def give(config, out, **_):
        ran.append((config, out.name))
        level = config.system.stage_sampling[1].level
        value = 0.9 - abs(level - 0.05)
        metrics = {
            "clip_score": {"train": Score(10 * value, 8, 9.5, 4)},
            "exact_match": {"train": Score(value, value - 0.1, value + 0.1, 4)},
            "fd_x": {"train": FrechetDistance(100 - 10 * level, 4, 4, None)},
        }
        return EvaluationResult(config.kind, config.name, {}, metrics, {})

    monkeypatch.setattr(evaluation_sweep, "run_evaluation", give)

    def command(*words):
        return mezzotint("evaluate", "evaluation.yaml", "--out", "scores", *words)

    command.ran = ran
    return command


def test_the_best_setting_is_chosen_on_training_captions(sweep, tmp_path):
    found = sweep("--sweep", f"{LEVEL}=0,0.05,0.1", "limit.train=7")
    assert found.code == 0, found.err
    configs = [config for config, _ in sweep.ran]
    assert [config.system.stage_sampling[1].level for config in configs] == [0, 0.05, 0.1]
    assert [config.system.stage_sampling[0].level for config in configs] == [0, 0, 0]
    assert {(config.limit.train, config.limit.test) for config in configs} == {(7, 0)}
    assert [name for _, name in sweep.ran] == ["00_level=0", "01_level=0.05", "02_level=0.1"]
    header, *rows = found.out.splitlines()
    assert header.split() == [LEVEL, "exact_match", "clip_score", "fd_x"]
    assert [row[0] for row in rows[:3]] == [" ", "*", " "]
    assert "0.9 (0.8 to 1)" in rows[1]
    assert rows[3] == f"* best: {LEVEL}=0.05 (highest exact_match of train)"
    kept = json.loads((tmp_path / "scores" / "sweep.json").read_text())
    assert kept["best"] == {LEVEL: "0.05"}
    assert kept["cells"][2]["metrics"]["fd_x"]["train"]["value"] == 99


def test_a_distance_is_best_where_it_is_lowest(sweep):
    words = ("--sweep", f"{LEVEL}=0,0.05", "--sweep", "system.base_sampling.steps=2,3")
    found = json.loads(sweep(*words, "--metric", "fd_x", "--json").out)
    assert found["chosen_by"] == "fd_x/train"
    assert found["best"] == {LEVEL: "0.05", "system.base_sampling.steps": "2"}
    assert len(found["cells"]) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep", "level"], "expected KEY=VALUE,VALUE"),
        (["--sweep", f"{LEVEL}=0", "--sweep", f"{LEVEL}=1"], "is swept already"),
        (["--sweep", "system.upsampler_sampling.2.level=0"], "2 is no element of a list of 2"),
        (["--sweep", f"{LEVEL}=0,9"], "less than or equal to 1"),
        (["--sweep", f"{LEVEL}=0", "limit.test=5"], "limit.test: --sweep chooses settings on tra"),
        (["--sweep", f"{LEVEL}=0", "limit.train=0"], "limit.train: --sweep needs training capt"),
        (["--metric", "exact_match"], "--metric: chooses the best of a sweep"),
        (["--sweep", f"{LEVEL}=0", "kind=cascade"], "describes inputs and chooses nothing"),
    ],
)
def test_a_sweep_that_cannot_be_run_starts_nothing(sweep, tmp_path, words, message):
    if "kind=cascade" in words:
        (tmp_path / "evaluation.yaml").write_text(YAML.replace("clip: clip\n", ""))
    found = sweep(*words)
    assert found.code == errors.BAD_INPUT
    assert message in found.err
    assert sweep.ran == []
    assert not (tmp_path / "scores").exists()


def test_a_metric_that_was_not_measured_ends_the_sweep_after_the_first(sweep):
    found = sweep("--sweep", f"{LEVEL}=0,0.1", "--metric", "fid")
    assert found.code == errors.BAD_INPUT
    assert "there is no such metric; choose clip_score/train, exact_match/train" in found.err
    assert len(sweep.ran) == 1
