"""What the commands print, and that asking for help costs nothing."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data_pipeline.text.tokenizer import Tokenizer
from trainer.recipe import load

COMMANDS = ["train", "run", "check", "sample", "evaluate", "dashboard"]
EDIT_COMMANDS = ["variations", "interpolate", "textdiff", "imagic"]
DATA_COMMANDS = ["pack", "inspect", "verify", "index", "tokenizer", "derive"]


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize(
    "command",
    [
        *([name] for name in COMMANDS),
        *(["data", name] for name in DATA_COMMANDS),
        *(["edit", name] for name in EDIT_COMMANDS),
    ],
)
def test_the_help_of_every_command_has_an_example(mezzotint, command):
    outcome = mezzotint(*command, "--help")
    assert outcome.code == 0
    text = " ".join(plain(outcome.out).split())
    assert "Usage: " in text
    assert re.search(rf"Examples?: mezzotint {' '.join(command)} \S", text), text


@pytest.mark.parametrize(
    ("group", "commands"), [([], COMMANDS), (["data"], DATA_COMMANDS), (["edit"], EDIT_COMMANDS)]
)
def test_help_lists_every_command_but_no_hidden_one(mezzotint, group, commands):
    text = plain(mezzotint(*group, "--help").out)
    for name in commands:
        assert re.search(rf"\b{name} +[A-Z]", text), name
    assert "Run one stage" not in text


def test_help_imports_nothing_heavy():
    began = time.monotonic()
    code = (
        "import sys, launch.cli.main\n"
        "heavy = {'torch', 'numpy', 'mlflow', 'deepspeed', 'PIL', 'fsspec', 'sentencepiece'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 10  # torch alone takes seconds where the rest takes a third


def test_an_unknown_command_or_option_is_named_with_exit_code_2(mezzotint):
    for words in (["trian"], ["train", "recipe.yaml", "--run", "x"], ["data", "pak"]):
        outcome = mezzotint(*words)
        assert outcome.code == 2
        assert re.search("trian|--run|pak", plain(outcome.err))
        assert "Traceback" not in outcome.err


@pytest.mark.parametrize("path", sorted(Path("recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_check_counts_parameters_exactly(mezzotint, tmp_path, path):
    report = json.loads(mezzotint("check", path, "--json", "--runs", tmp_path).out)
    recipe = load(path)
    with torch.device("meta"):
        model = recipe.model.build()
    counted = sum(weight.numel() for weight in model.parameters())
    assert sum(report["parameters"]["model"].values()) == counted
    assert report["total"] == sum(sum(part.values()) for part in report["parameters"].values())
    assert report["steps"] == recipe.steps
    assert report["per_step"]["images"] == recipe.batch
    assert report["recipe"] == json.loads(json.dumps(recipe.model_dump(mode="json")))
    assert not list(tmp_path.iterdir())


def test_check_writes_only_json_to_stdout(tmp_path):
    command = [
        sys.executable,
        "-P",
        "-m",
        "launch.cli.main",
        "check",
        "recipes/emoji_dvae.yaml",
        "--json",
    ]
    done = subprocess.run(
        [*command, "--runs", str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout)["recipe"]["name"] == "emoji_dvae"


def test_check_plans_for_more_processes_and_overrides(mezzotint, tmp_path):
    words = ["check", "recipes/emoji_base.yaml", "batch=64", "engine.zero=3", "--processes", "4"]
    report = json.loads(mezzotint(*words, "--json", "--runs", tmp_path).out)
    assert report["per_step"]["samples per forward"] == 16
    assert report["deepspeed"]["model"]["train_micro_batch_size_per_gpu"] == 16
    assert report["deepspeed"]["model"]["zero_optimization"]["stage"] == 3
    assert f"{tmp_path}/emoji_base/model" in report["writes"]


def test_check_is_readable_without_json(mezzotint, tmp_path):
    text = mezzotint("check", "recipes/emoji_dvae.yaml", "--runs", tmp_path).out
    assert "parameters (exact, trainable):" in text
    assert re.search(r"total: \d+,\d{3},\d{3}", text)
    assert not list(tmp_path.iterdir())


def test_inspect_reports_the_contents_of_a_set(mezzotint, write_set, tmp_path):
    url, sheet = write_set(), tmp_path / "sheet.png"
    found = json.loads(mezzotint("data", "inspect", url, "--json").out)
    assert (found["name"], found["samples"], found["shards"]) == ("squares", 12, 3)
    assert found["splits"]["halves"] == {"description": "even", "train": 6, "test": 6}
    text = mezzotint("data", "inspect", url, "--sheet", sheet, "--count", 4).out
    assert "12 samples in 3 shards" in text
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_an_image_of_no_known_format_is_refused_before_the_work(refused, tmp_path):
    for command in (
        ("sample", tmp_path / "none", "a cat", "--out"),
        ("invert", tmp_path / "none", tmp_path / "0.png", "--out"),
        ("complete", tmp_path / "none", tmp_path / "0.png", "a cat", "--out"),
        ("data", "inspect", tmp_path / "none", "--sheet"),
    ):
        text = refused(*command, tmp_path / "images")
        assert text == f"{tmp_path}/images: give a file that ends with .png, .jpg, .jpeg, .webp"
        assert "is a directory" in refused(*command, directory(tmp_path / "images.png"))


def directory(path):
    path.mkdir(exist_ok=True)
    return path


def test_verify_reports_an_intact_set(mezzotint, write_set):
    url = write_set()
    assert json.loads(mezzotint("data", "verify", url, "--json").out) == {
        "url": str(url),
        "shards": 3,
        "samples": 12,
        "intact": True,
        "images_decoded": False,
        "not_in_manifest": [],
    }
    last = mezzotint("data", "verify", url).out.splitlines()[-1]
    assert last.startswith(f"{url}: intact, 12 samples in 3 shards; captions and arrays decode")


def test_index_turns_plain_tars_into_a_set(mezzotint, write_set):
    url = write_set(changes={3: {"txt": None}})
    (url / "manifest.json").unlink()
    found = json.loads(mezzotint("data", "index", url, "--name", "mine", "--json").out)
    assert found["samples"] == 11
    assert len(found["excluded"]) == 1
    assert "0003" in found["excluded"][0]
    assert json.loads(mezzotint("data", "verify", url, "--json").out)["intact"] is True


def test_tokenizer_is_trained_on_the_captions(mezzotint, write_set, tmp_path):
    out = tmp_path / "tokenizer"
    outcome = mezzotint("data", "tokenizer", write_set(), out, "--vocab", 40)
    last = outcome.out.splitlines()[-1]
    assert last == f"{out}/tokenizer.model: 40 pieces from 12 captions"
    assert Tokenizer.load(str(out)).vocab_size == 40


def test_pack_and_read_back(mezzotint, png, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        (photos / f"{number}.png").write_bytes(png())
        (photos / f"{number}.txt").write_text(f"image {number}")
    (photos / "4.txt").unlink()
    out = tmp_path / "out"
    report = json.loads(mezzotint("data", "pack", photos, out, "--json").out)
    assert (report["samples"], report["shards"]) == (4, 1)
    assert [one["name"] for one in report["rejected"]] == ["4.png"]
    assert json.loads(mezzotint("data", "verify", out, "--json").out)["samples"] == 4
    again = mezzotint("data", "pack", photos, out).out
    assert "rejected 1 pairs: 1 caption missing" in again
    assert f"{out}/rejected.jsonl" in again
