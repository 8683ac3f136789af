"""How an exception ends a command."""

import pytest

from launch.errors import run_command
from launch.pipeline.config import Pipeline
from mezzotint.common.errors import UserError


@pytest.mark.parametrize("error", [UserError], ids=str)
def test_bad_input_becomes_one_line_and_exit_code_2(capsys, monkeypatch, error):
    codes = []
    monkeypatch.setattr("launch.errors.os._exit", codes.append)

    def refuse() -> None:
        raise error("that file: is not one; use another")

    run_command(refuse)
    assert codes == [2]
    assert capsys.readouterr().err == "error: that file: is not one; use another\n"


def test_an_invalid_setting_outside_a_recipe_is_named_too(capsys, monkeypatch):
    codes = []
    monkeypatch.setattr("launch.errors.os._exit", codes.append)
    run_command(lambda: Pipeline.model_validate({"name": "a", "stages": {}}) and None)
    assert codes == [2]
    assert capsys.readouterr().err.startswith("error: Pipeline: stages: ")


@pytest.mark.parametrize(
    ("words", "sequel"),
    [
        (["train", "x.yaml"], "; the same command resumes from the newest checkpoint, or"),
        (["run", "x.yaml"], "; the same command resumes the stages that are not finished"),
        (["data", "pack", "a", "b"], "; the same command goes on with"),
        (["data", "inspect", "a"], "\n"),
        (["sample", "train", "a cat"], "\n"),
    ],
)
def test_an_interruption_says_how_to_resume_where_there_is_something_to(
    capsys, monkeypatch, words, sequel
):
    codes = []
    monkeypatch.setattr("sys.argv", ["mezzotint", *words])
    monkeypatch.setattr("launch.errors.os._exit", codes.append)

    def interrupt() -> None:
        raise KeyboardInterrupt

    run_command(interrupt)
    assert codes == [130]
    assert capsys.readouterr().err.startswith(f"interrupted{sequel}")


def test_an_internal_error_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0 and None)
