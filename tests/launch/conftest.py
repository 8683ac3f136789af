"""The command line called in this process, and small inputs for it."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.packing.shard_writer import RawSample, write_shards
from data_pipeline.text.tokenizer import Tokenizer
from launch import errors
from launch.cli import main
from trainer import distributed


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def mezzotint(monkeypatch, capsys) -> Iterator[Callable[..., Outcome]]:
    """Runs a command through the entry point; an exit ends the command, not the test."""

    def exit_now(code: int) -> None:
        raise SystemExit(code)

    def command(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mezzotint", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        code, (out, err) = ended.value.code, capsys.readouterr()
        return Outcome(code if isinstance(code, int) else bool(code), out, err)

    environment = dict(os.environ)
    monkeypatch.setattr(errors, "exit_now", exit_now)
    monkeypatch.setattr(errors, "_codes", [])
    monkeypatch.setenv("COLUMNS", "200")
    yield command
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def refused(mezzotint, tmp_path):
    """Runs a command that must be refused; checks its output and returns the message."""

    def command(*words: object) -> str:
        before = written(tmp_path)
        outcome = mezzotint(*words)
        distributed.leave()
        assert outcome.code == errors.BAD_INPUT, outcome
        assert "Traceback" not in outcome.err
        (message,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        for path in written(tmp_path) - before:
            assert path.split("/")[-1] in ALLOWED or path.endswith(("/logs", "/previews")), path
        return message.removeprefix("error: ")

    return command


ALLOWED = ("runs", "tiny", "lock", "training.lock", "recipe.yaml", "environment.json")
"""Files that a refused run may write: the corrected command resumes it."""


def written(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*")}


@pytest.fixture
def png() -> Callable[..., bytes]:
    """Makes a PNG of one color."""

    def make(colour: str = "red", side: int = 16) -> bytes:
        content = io.BytesIO()
        Image.new("RGB", (side, side), colour).save(content, "PNG")
        return content.getvalue()

    return make


@pytest.fixture
def write_set(tmp_path, png) -> Callable[..., Path]:
    """Writes a set of a few squares; members can be replaced or, with None, left out."""

    def write(
        name: str = "set", samples: int = 12, *, changes=None, codes=None, encoder=None
    ) -> Path:
        def sample(number: int) -> RawSample:
            colour = ("red", "green", "blue")[number % 3]
            members = {
                "png": png(colour),
                "txt": f"{colour} square number {number}".encode(),
                "json": json.dumps({"colour": colour}).encode(),
            }
            if codes is not None:
                content = io.BytesIO()
                np.save(content, np.full(codes, number % 7, dtype=np.int32))
                members["codes.npy"] = content.getvalue()
            members |= (changes or {}).get(number, {})
            members = {key: value for key, value in members.items() if value is not None}
            part = "test" if number % 2 else "train"
            return RawSample(f"{number:04d}", members, {"colour": colour}, {"halves": part})

        write_shards(
            (sample(number) for number in range(samples)),
            str(tmp_path / name),
            name="squares",
            licence="CC0-1.0",
            provenance={},
            shard_size=5,
            fields={"png": "a square", "txt": "its caption"},
            encoder=encoder,
            splits={"halves": "even"},
        )
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory) -> Path:
    """A tokenizer of 40 pieces."""
    directory = tmp_path_factory.mktemp("tokenizer")
    captions = [f"{colour} square number {n}" for colour in ("red", "green") for n in range(30)]
    (directory / "tokenizer.model").write_bytes(Tokenizer.train(captions, 40))
    return directory
