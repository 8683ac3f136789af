import json
from pathlib import Path

from trainer.recipe import flatten
from trainer.run import first_difference
from trainer.tracking.run_log import MetricsLog, read_metrics


def test_the_first_differing_key_is_named_with_both_values():
    before = {"a": {"b": 1, "c": [1, 2]}}
    assert first_difference(before, {"a": {"b": 1, "c": [1, 2]}}) is None
    assert first_difference(before, {"a": {"b": 2, "c": [1, 2]}}) == "a.b was 1 and is now 2"
    assert first_difference({"a": 1}, {"a": 1, "b": 3}) == "b was None and is now 3"


def test_a_replayed_step_is_recorded_once_and_a_torn_line_is_dropped(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    record = MetricsLog(path)
    record.append(10, {"loss": 1.0})
    record.append(20, {"loss": 0.5})
    with path.open("ab") as file:
        file.write(b'{"step": 30, "metr')
    again = MetricsLog(path)
    again.append(20, {"loss": 99.0})
    again.append(30, {"loss": 0.25})
    assert [(line["step"], line["metrics"]["loss"]) for line in read_metrics(path)] == [
        (10, 1.0),
        (20, 0.5),
        (30, 0.25),
    ]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_settings_become_dotted_parameters():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1]}) == {
        "a.b": 1,
        "a.c.d": None,
        "e": [1],
    }
