"""What becomes of an exception at the end of a command."""

import pytest

from launch.guard import guarded
from launch.pipeline.config import Pipeline
from mezzotint.common.errors import UserError


@pytest.mark.parametrize("error", [UserError], ids=str)
def test_every_rooms_refusal_becomes_one_line_and_exit_code_2(capsys, monkeypatch, error):
    left = []
    monkeypatch.setattr("launch.guard.os._exit", left.append)

    def refuse() -> None:
        raise error("that file: is not one; use another")

    guarded(refuse)
    assert left == [2]
    assert capsys.readouterr().err == "error: that file: is not one; use another\n"


def test_a_setting_refused_outside_of_a_recipe_is_named_too(capsys, monkeypatch):
    left = []
    monkeypatch.setattr("launch.guard.os._exit", left.append)
    guarded(lambda: Pipeline.model_validate({"name": "a", "stages": {}}) and None)
    assert left == [2]
    assert capsys.readouterr().err.startswith("error: Pipeline: stages: ")


def test_an_interruption_says_how_to_go_on(capsys, monkeypatch):
    left = []
    monkeypatch.setattr("launch.guard.os._exit", left.append)

    def interrupt() -> None:
        raise KeyboardInterrupt

    guarded(interrupt)
    assert left == [130]
    assert "the same command goes on from the last checkpoint" in capsys.readouterr().err


def test_a_fault_of_our_own_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0 and None)
