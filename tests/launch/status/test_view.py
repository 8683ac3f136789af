"""The output of `mezzotint status`, once and with --watch."""

import io
import json
import re
import signal
import subprocess
import sys

import pytest
from rich.console import Console
from status_helpers import NEEDS, NOW, job_state, progress, status

from launch.status import table
from mezzotint.common.files import write_json
from mezzotint.common.locks import run_lock


def test_status_prints_one_json_object_of_a_run_or_of_all(mezzotint, root, recipe):
    run = json.loads(mezzotint("status", "both", "--runs", root.parent, "--json").out)
    assert [stage["stage"] for stage in run["stages"]] == [*NEEDS]
    assert {"state", "job", "nodes", "step", "loss", "images_per_second", "seconds_left"} <= set(
        run["stages"][0]
    )
    runs = json.loads(mezzotint("status", "--runs", root.parent, "--json").out)["runs"]
    assert {each["name"] for each in runs} == {"both", "alone"}
    assert json.loads(mezzotint("status", "--runs", root, "--json").out) == {"runs": []}


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_the_help_of_a_command_has_examples(mezzotint, command):
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", mezzotint(command, "--help").out).split())
    assert f"Examples: mezzotint {command} quickstart" in text


def test_status_is_a_readable_table(mezzotint, root):
    text = mezzotint("status", "both", "--runs", root.parent).out
    assert "both  not submitted  0 of 3 stages done" in text
    assert mezzotint("status", "--runs", root.parent).out.splitlines()[1].startswith("both ")
    assert "no runs yet" in mezzotint("status", "--runs", root).out


@pytest.mark.parametrize("width", [80, 120])
def test_a_full_table_fits_its_terminal(submitted, width):
    nodes = tuple(f"gpu-a-00{number}" for number in range(12, 20))
    metrics = {"loss/model": 0.0123456, "images_per_second": 12345.6}
    progress(submitted / "train", 123_400, 1_000_000, seconds_left=123_456, metrics=metrics)
    run = status(submitted, job_state("train", "RUNNING", nodes=nodes, started=NOW, restarts=2))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table.render([run], listed=False, now=NOW, width=console.width))
    text = console.export_text()
    for words in ("123,400/1,000,000", "0.01235", "12,346", "1 d 10 h", "gpu-a-0012..0019 (8)"):
        assert words in text
    assert "restarted 2 times" in text
    assert "…" not in text


def test_watching_ends_with_the_run_and_json_has_a_line_per_change(recipe):
    progress(recipe, 40, 100)
    command = [
        sys.executable,
        "-P",
        "-m",
        "launch.cli.main",
        "status",
        "alone",
        "--watch",
        "--json",
    ]
    command += ["--runs", str(recipe.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching, run_lock(recipe):
        first = json.loads(watching.stdout.readline())
        progress(recipe, 60, 100)
        second = json.loads(watching.stdout.readline())
        write_json(recipe / "summary.json", {"steps": 100})
        last = json.loads(watching.stdout.readline())
        assert watching.stdout.read() == ""
        assert watching.wait(10) == 0
    assert [each["stages"][0]["step"] for each in (first, second)] == [40, 60]
    assert (first["state"], last["state"]) == ("running", "finished")


def test_ctrl_c_ends_watching(recipe):
    # in a shell's background, child processes inherit that the signal is ignored
    command = ["env", "--default-signal=INT", sys.executable, "-P", "-m", "launch.cli.main"]
    command += ["status", "alone", "--watch", "--runs", str(recipe.parent)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with run_lock(recipe), subprocess.Popen(command, **pipes) as watching:
        assert "alone  running" in watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        assert (watching.wait(10), watching.stderr.read()) == (0, "")


def test_status_answers_without_torch():
    code = (
        "import sys, launch.status.table, launch.submit.cancel, launch.status.logs\n"
        "sys.exit(int('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
