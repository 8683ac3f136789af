"""Errors of a store are one sentence without a secret."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import s3
from object_store import (
    MESSAGES,
    SECRETS,
    TOKEN,
    Outcome,
    check_message,
    check_no_secrets,
    expired_token,
    model,
    no_credentials,
    unreachable,
    wrong_secret,
)

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.sets.stored_set import read_manifest
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from models import store

pytestmark = pytest.mark.s3


@pytest.mark.parametrize("case", MESSAGES, ids=lambda case: case.__name__)
def test_store_errors_are_one_sentence(
    case, s3_server, proxy, people, use_env, mezzotint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    use_env(case(s3_server, proxy))
    start = time.monotonic()
    check_message(mezzotint("data", "verify", people), people, MESSAGES[case])
    assert time.monotonic() - start < 20
    check_no_secrets(tmp_path)


@pytest.mark.parametrize("case", [wrong_secret, expired_token, unreachable, no_credentials])
def test_store_errors_of_a_model_directory_are_one_sentence(
    case, s3_server, proxy, bucket, use_env
):
    use_env(case(s3_server, proxy))
    message = re.escape(MESSAGES[case])
    with pytest.raises(UserError, match=rf"{bucket}/model/config\.json: .*{message}") as caught:
        store.describe(f"{bucket}/model")
    saved = model()
    with pytest.raises(UserError, match=rf"{bucket}/new/config\.json: .*{message}"):
        store.save(f"{bucket}/new", saved.config, saved.state_dict(), card="")
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_a_missing_bucket_is_named(mezzotint, tmp_path):
    message = "there is no such bucket"
    check_message(mezzotint("data", "verify", "s3://nowhere-at-all/set"), "s3://nowhere", message)
    outcome = mezzotint("data", "pack", "data/emoji", "s3://nowhere-at-all/set", "--limit", 5)
    check_message(outcome, "s3://nowhere-at-all/set", message)
    outcome = mezzotint("data", "inspect", "s3://nowhere-at-all/set")
    check_message(outcome, "s3://nowhere-at-all/set", message)
    with pytest.raises(UserError, match=r"s3://nowhere-at-all/m/config\.json: .*no such bucket"):
        store.load("s3://nowhere-at-all/m")
    saved = model()
    with pytest.raises(UserError, match=r"s3://nowhere-at-all/m/.*: there is no such bucket"):
        store.save("s3://nowhere-at-all/m", saved.config, saved.state_dict(), card="")


def test_a_missing_set_a_missing_model_and_a_missing_tokenizer_are_named(
    mezzotint, bucket, people, tmp_path
):
    gone = f"{bucket}/gone"
    check_message(mezzotint("data", "verify", gone), f"{gone}/manifest.json: no such file; make it")
    check_message(mezzotint("data", "index", gone), f"{gone}: no such directory")
    check_message(mezzotint("data", "pack", gone, tmp_path / "o"), f"{gone}: no such folder")
    outcome = mezzotint("data", "derive", people, tmp_path / "o", "--model", gone)
    check_message(outcome, f"{gone}/config.json: no such file; {gone} is not a model directory")
    with pytest.raises(UserError, match=rf"{gone}/tokenizer\.model: no such file; train it"):
        Tokenizer.load(gone)


def test_a_token_that_expires_while_packing_stops_it_and_no_pair_is_rejected(
    proxy, folder, bucket, use_env, mezzotint, tmp_path
):
    dataset = open_dataset(DataConfig(url=folder))
    for number in range(4):
        storage.write_bytes(f"{bucket}/expire/{number}.png", dataset.member(number, "png"))
        storage.write_bytes(f"{bucket}/expire/{number}.txt", b"an image")
    command = ("data", "pack", f"{bucket}/expire", tmp_path / "set", "--shard-size", 2, "--json")
    use_env(proxy.environment())
    proxy.inject("expire/2", "expired")
    outcome = mezzotint(*command)
    check_message(outcome, MESSAGES[expired_token])
    proxy.reset()
    outcome = mezzotint(*command)
    assert (outcome.code, read_manifest(str(tmp_path / "set")).sample_count) == (0, 4)


def test_a_url_with_credentials_is_refused_and_not_repeated(mezzotint, tmp_path, monkeypatch):
    url = f"s3://key:{s3.CANARY}@tests/people"
    message = "a URL must not hold credentials; set AWS_ACCESS_KEY_ID"
    check_message(mezzotint("data", "verify", url), "s3://tests/people", message)
    check_message(mezzotint("data", "pack", "data/emoji", url), "s3://tests/people", message)
    check_message(mezzotint("data", "pack", url, tmp_path / "o"), "s3://tests/people", message)
    outcome = mezzotint("data", "derive", "data/emoji", tmp_path / "o", "--model", url)
    check_message(outcome, "s3://tests/people", message)
    runs = ("--runs", tmp_path / "runs")
    outcome = mezzotint("train", "recipes/emoji_dvae.yaml", f"data.url={url}", *runs)
    check_message(outcome, "data.url", message)
    recipe = tmp_path / "pipeline.yaml"
    text = Path("recipes/pipelines/quickstart.yaml").read_text()
    recipe.write_text(text)
    outcome = mezzotint("run", recipe, f"values.pairs={url}", *runs)
    check_message(outcome, "values.pairs", message)
    check_no_secrets(tmp_path / "runs")


def test_the_command_itself_ends_with_code_2_and_without_a_secret(s3_server, people, tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "launch.cli.main", "data", "verify", people],
        env={**os.environ, **s3_server.environment(AWS_SECRET_ACCESS_KEY=TOKEN)},
        capture_output=True,
        text=True,
        check=False,
    )
    check_message(Outcome(done.returncode, done.stdout, done.stderr), MESSAGES[wrong_secret])
