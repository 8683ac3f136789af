"""A set in a real S3 server and in a folder, commands called in this process, a faulty proxy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import pytest
import s3
import s3fs
from object_store import Outcome

from data_pipeline.config import Selection
from data_pipeline.packing.pack import PackOptions, pack
from launch import errors
from launch.cli import main

PACK = ["--split", "composition", "--limit", "60", "--shard-size", "10"]
COMPOSITION = tuple(Selection(split="composition", part=part) for part in ("train", "test"))


@pytest.fixture
def use_env(monkeypatch) -> Callable[[Mapping[str, str]], None]:
    """Sets the AWS variables of this process; S3 clients read them when they are created."""

    def use(environment: Mapping[str, str]) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    return use


@pytest.fixture(autouse=True)
def store_and_cache(s3_server, use_env, monkeypatch, tmp_path) -> Iterator[None]:
    """Every test starts with valid credentials and an empty cache."""
    use_env(s3_server.environment())
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def mezzotint(monkeypatch, capfd) -> Callable[..., Outcome]:
    """Runs a command in this process; an exit ends the command, not the test."""

    def exit_now(code: int) -> None:
        raise SystemExit(code)

    def command(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mezzotint", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        code, (out, err) = ended.value.code, capfd.readouterr()
        return Outcome(code if isinstance(code, int) else bool(code), out, err)

    monkeypatch.setattr(errors, "exit_now", exit_now)
    monkeypatch.setattr(errors, "_codes", [])
    monkeypatch.setenv("COLUMNS", "200")
    return command


@pytest.fixture(scope="session")
def proxy(s3_server) -> Iterator[s3.Proxy]:
    with s3.proxy(s3_server) as running:
        yield running


@pytest.fixture(autouse=True)
def no_injected_errors(proxy) -> None:
    proxy.reset()


@pytest.fixture(scope="session")
def bucket(s3_server) -> str:
    return s3_server.bucket("tests")


@pytest.fixture(scope="session")
def packed(s3_server, bucket, tmp_path_factory) -> dict[str, object]:
    """Sixty samples in six shards, in S3 (`url`) and in a folder (`folder`)."""
    url, folder = f"{bucket}/people", str(tmp_path_factory.mktemp("people") / "set")
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "launch.cli.main",
            "data",
            "pack",
            "data/emoji",
            url,
            *PACK,
            "--json",
        ],
        env={**os.environ, **s3_server.environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert s3.CANARY not in done.stdout + done.stderr
    pack("data/emoji", folder, PackOptions(select=COMPOSITION, limit=60, shard_size=10))
    return {**json.loads(done.stdout), "url": url, "folder": folder}


@pytest.fixture
def people(packed) -> str:
    return packed["url"]


@pytest.fixture
def folder(packed) -> str:
    return packed["folder"]
