"""Training from S3: damaged shards are refused; the losses equal those with local files."""

import json
import subprocess
import sys

import pytest
from object_store import SECRETS, check_no_secrets

from data_pipeline.sets.stored_set import read_manifest
from mezzotint.common import storage
from models import store
from trainer.tracking.run_log import read_metrics

pytestmark = pytest.mark.s3


def damaged(people: str, url: str, *, longer: bool) -> str:
    """A copy of the set at `url` whose second shard differs from the manifest; returns its name."""
    manifest = read_manifest(people)
    storage.write_bytes(f"{url}/manifest.json", manifest.model_dump_json().encode())
    for number, shard in enumerate(manifest.shards):
        content = bytearray(storage.read_bytes(f"{people}/{shard.name}"))
        if number == 1:
            content[700] ^= 1
            content += bytes(512) if longer else b""
        storage.write_bytes(f"{url}/{shard.name}", bytes(content))
        index = storage.read_bytes(f"{people}/{shard.index_name}")
        storage.write_bytes(f"{url}/{shard.index_name}", index)
    return manifest.shards[1].name


@pytest.mark.parametrize("longer", [True, False], ids=["size", "byte"])
def test_a_shard_that_does_not_match_its_manifest_is_refused(
    longer, mezzotint, people, bucket, tmp_path
):
    url = f"{bucket}/damaged-{longer}"
    name = damaged(people, url, longer=longer)
    command = [sys.executable, "-P", "-m", "launch.cli.main", "train", "recipes/emoji_dvae.yaml"]
    command += [f"data.url={url}", "steps=2", "batch=60", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"{url}/{name}: does not match its manifest" in errors[0]
    assert "Traceback" not in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)
    assert not list((tmp_path / "cache").glob(f"*/{read_manifest(url).shards[1].sha256}.tar*"))
    outcome = mezzotint("data", "verify", url)
    assert outcome.code == 2
    assert f"{url}/{name}: " in outcome.err
    assert outcome.err.count(".tar: ") == 1
    check_no_secrets(tmp_path)


@pytest.mark.processes
def test_two_processes_train_from_s3_as_from_local_files_and_publish_there(
    proxy, people, folder, bucket, train_sessions, tmp_path, monkeypatch
):
    for name, value in proxy.environment().items():
        monkeypatch.setenv(name, value)
    common = [
        *("steps=4", "batch=8", "engine.precision=fp32", "log.every=1", "log.previews=null"),
        *("model.width=32", "model.initial_width=32", "model.vocab=64", "data.shuffle_block=2"),
    ]
    sources = {"s3": people, "local": folder}
    entries = [
        {
            "recipe": "recipes/emoji_dvae.yaml",
            "overrides": [*common, f"data.url={url}", f"publish={bucket}/models/{name}"],
            "directory": str(tmp_path / name),
        }
        for name, url in sources.items()
    ]
    (tmp_path / "sessions.json").write_text(json.dumps(entries))
    train_sessions(tmp_path / "sessions.json", 2)
    losses = {
        name: [
            line["metrics"]["loss/model"]
            for line in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in sources
    }
    assert len(losses["s3"]) == 4
    assert losses["s3"] == losses["local"]
    fetched = [count for name, count in proxy.fetched.items() if name.endswith(".tar")]
    assert fetched
    assert set(fetched) == {1}
    for name in sources:
        published = store.describe(f"{bucket}/models/{name}")
        assert published == store.describe(str(tmp_path / name / "model"))
    check_no_secrets(tmp_path)
