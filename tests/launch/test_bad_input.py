"""Bad input ends with one clear message and exit code 2: no traceback, nothing half-written."""

import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from launch.errors import BAD_INPUT
from models import store
from models.autoencoders.dvae import DVAEConfig
from trainer.recipe import load
from trainer.run import RunDirectory

# Third-party packages warn at their import.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def train(tmp_path, write_set):
    """A training command over a small set: a function of further overrides."""

    def words(*overrides: str, recipe: str = "emoji_dvae") -> list[object]:
        text = ["engine.precision=fp32", "name=tiny", "steps=2", "batch=4", "data.select=[]"]
        small = ["model.width=16", "model.initial_width=16", "model.vocab=16"]
        common = [*text, *(small if recipe == "emoji_dvae" else [])]
        return ["train", f"recipes/{recipe}.yaml", *common, *overrides, "--runs", tmp_path / "runs"]

    return words


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes that says it is `side` pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


TORN = b"\x89PNG\r\n\x1a\nnothing"


def test_the_process_itself_ends_with_code_2_and_one_line(tmp_path):
    command = [sys.executable, "-P", "-m", "launch.cli.main", "train", "recipes/emoji_dvae.yaml"]
    done = subprocess.run(
        [*command, "model.vocabb=3", "--runs", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: recipes/emoji_dvae.yaml: model.vocabb: unknown key; remove it or check its spelling"
    )
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.vocabb=3", "model.vocabb: unknown key"),
        ("steps=0", "steps: Input should be greater than 0"),
        ("batch", "'batch': an override looks like key.path=value"),
    ],
)
@pytest.mark.parametrize("command", ["train", "check"])
def test_an_invalid_recipe_writes_nothing(refused, tmp_path, command, override, message):
    recipe = "recipes/emoji_dvae.yaml"
    found = refused(command, recipe, override, "--runs", tmp_path / "runs")
    assert message in found
    assert not (tmp_path / "runs").exists()


def test_a_missing_shard_is_named(refused, mezzotint, train, write_set):
    url = write_set()
    (url / "squares-000001.tar").unlink()
    assert "squares-000001.tar" in refused(*train(f"data.url={url}"))
    assert problems(mezzotint, url) == [f"{url}/squares-000001.tar: missing"]


def problems(mezzotint, url: Path) -> list[str]:
    """What `data verify` finds: one difference a line, below one error."""
    outcome = mezzotint("data", "verify", url)
    assert outcome.code == BAD_INPUT
    first, *rest = outcome.err.splitlines()
    assert first.startswith(f"error: {url}: differs from its manifest; copy what is damaged again")
    return [line.strip() for line in rest]


def test_a_shard_that_differs_from_the_manifest_is_named(refused, mezzotint, train, write_set):
    url = write_set()
    shard = url / "squares-000000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    assert problems(mezzotint, url) == [f"{shard}: its sha256 differs from the manifest"]
    shard.write_bytes(content[:-1024])
    assert str(shard) in refused(*train(f"data.url={url}"))


def test_a_set_without_a_manifest_is_named_with_the_command_that_makes_one(
    refused, train, write_set
):
    url = write_set()
    (url / "manifest.json").unlink()
    message = refused(*train(f"data.url={url}"))
    assert f"{url}/manifest.json: no such file" in message
    assert f"mezzotint data index {url}" in message


def test_a_run_refused_for_its_data_takes_the_corrected_recipe(refused, train, write_set, tmp_path):
    refused(*train(f"data.url={tmp_path / 'none'}"))
    message = refused(
        *train(f"data.url={write_set()}", "data.select=[{split: thirds, part: test}]")
    )
    assert "has no split 'thirds'; it has 'halves'" in message


def test_a_started_run_refuses_another_recipe_by_the_key(refused, train, tmp_path):
    words, run = train(), RunDirectory(tmp_path / "runs" / "tiny")
    run.claim(load(words[1], words[2:-2]))
    (run.path / "metrics.jsonl").touch()
    assert refused(*train("steps=3")).startswith(
        f"{run.path}: holds a run of another recipe: steps was 2 and is now 3; undo the change"
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [(TORN, "not a readable PNG, JPEG or WebP image"), (bomb(), "too many pixels")],
    ids=["torn", "bomb"],
)
def test_an_unusable_image_of_a_set_is_named(refused, write_set, tmp_path, content, fault):
    url, sheet = write_set(changes={2: {"png": content}}), tmp_path / "sheet.png"
    message = refused("data", "inspect", url, "--sheet", sheet, "--count", 12)
    assert message.startswith(f"{url}: 0002.png: {fault}")
    assert not sheet.exists()


@pytest.mark.processes
def test_training_ends_at_an_unusable_image_with_its_name(train, write_set, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    url = write_set(changes={2: {"png": TORN}})
    words = [str(word) for word in train(f"data.url={url}", "steps=9", "log.every=9")]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "launch.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == BAD_INPUT, done.stderr
    assert f"error: {url}: squares-000000.tar: 0002.png: not a readable PNG" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "tiny" / "model").exists()


def test_pack_reports_every_bad_pair_by_name(mezzotint, png, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    images = {
        "good": png(),
        "silent": png(),
        "empty": png(),
        "torn": png(side=64)[:60],
        "bomb": bomb(),
    }
    for name, content in images.items():
        (photos / f"{name}.png").write_bytes(content)
        (photos / f"{name}.txt").write_text("" if name == "empty" else f"a {name} image")
    (photos / "silent.txt").unlink()
    (photos / "orphan.txt").write_text("no image")
    outcome = mezzotint("data", "pack", photos, out, "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert report["samples"] == 1
    assert {one["name"]: one["fault"] for one in report["rejected"]} == {
        "bomb.png": "image unreadable",
        "empty.png": "caption missing",
        "orphan.txt": "image missing",
        "silent.png": "caption missing",
        "torn.png": "image unreadable",
    }
    lines = (out / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == report["rejected"]


def test_a_tokenizer_with_another_vocabulary_is_refused(
    refused, train, write_set, tokenizer_directory
):
    words = train(
        f"data.url={write_set()}", f"data.text.tokenizer={tokenizer_directory}", recipe="emoji_base"
    )
    message = refused(*words)
    assert message.startswith(f"data.text.tokenizer: {tokenizer_directory} has 40 pieces and ")
    vocab = load("recipes/emoji_base.yaml").model.text_vocab
    assert f"model.text_vocab is {vocab}; set model.text_vocab=40 or train" in message


def test_captions_of_another_length_than_the_models_are_refused(
    refused, train, write_set, tokenizer_directory
):
    overrides = [f"data.text.tokenizer={tokenizer_directory}", "model.text_vocab=40"]
    overrides.append("model.text_length=12")
    words = train(f"data.url={write_set()}", *overrides, "data.text.length=9", recipe="emoji_base")
    assert "data.text.length is 9 and model.text_length is 12; make them equal" in refused(*words)


def test_a_missing_tokenizer_is_named(refused, train, write_set, tmp_path):
    words = train(
        f"data.url={write_set()}", f"data.text.tokenizer={tmp_path / 'none'}", recipe="emoji_base"
    )
    message = refused(*words)
    assert message.startswith(f"{tmp_path}/none/tokenizer.model: no such file; train it with")


@pytest.fixture
def dvae(tmp_path) -> Path:
    """The model directory of a dVAE that has learnt nothing."""
    model = DVAEConfig(image_size=16, vocab=16, width=8, groups=2, patch=2, initial_width=8).build()
    store.save(str(tmp_path / "dvae"), model.config, model.state_dict(), card="# dVAE\n")
    return tmp_path / "dvae"


def test_tokens_of_another_dvae_are_refused(refused, train, write_set, tokenizer_directory, dvae):
    url = write_set(codes=(8, 8), encoder="1" * 64)
    text = [f"data.text.tokenizer={tokenizer_directory}", "model.text_vocab=40"]
    words = train(f"data.url={url}", f"data.encoder={dvae}", *text, recipe="emoji_prior")
    message = refused(*words)
    digest = store.describe(str(dvae)).digest
    assert message == (
        f"{url}: its encoder is {'1' * 12}, but this run needs {digest[:12]}; "
        "derive the set again with that model"
    )


def test_a_model_that_encodes_nothing_cannot_derive(refused, write_set, tmp_path):
    message = refused("data", "derive", write_set(), tmp_path / "tokens", "--model", tmp_path)
    assert f"{tmp_path}/config.json: no such file" in message
    assert not (tmp_path / "tokens").exists()


def test_a_model_whose_weights_have_changed_is_refused(refused, write_set, dvae, tmp_path):
    weights = dvae / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    message = refused("data", "derive", write_set(), tmp_path / "tokens", "--model", dvae)
    assert "model.safetensors" in message
    assert not (tmp_path / "tokens").exists()


@pytest.fixture
def full(monkeypatch) -> None:
    """A disk with 100 bytes left."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))


@pytest.mark.usefixtures("full")
def test_a_full_disk_is_named_before_training(refused, train, tmp_path):
    message = refused(*train())
    assert message == (
        f"{tmp_path}/runs/tiny: no disk space for the run: 67 MB are needed and 0 MB are free; "
        "delete files or choose another directory"
    )


def test_a_full_disk_is_named_before_packing_and_deriving(
    mezzotint, write_set, png, dvae, tmp_path, request
):
    photos, url = tmp_path / "photos", write_set()
    photos.mkdir()
    (photos / "a.png").write_bytes(png())
    (photos / "a.txt").write_text("an image")
    request.getfixturevalue("full")
    for words in (["pack", photos], ["derive", url, "--model", dvae]):
        out = tmp_path / words[0]
        outcome = mezzotint("data", *words[:2], out, *words[2:])
        assert outcome.code == BAD_INPUT
        assert f"error: {out}: no disk space for the next shard: " in outcome.err
        assert not list(out.rglob("*.tar"))
        assert not list(out.rglob("manifest.json"))


def test_a_run_locked_by_another_process_is_refused(refused, train, tmp_path):
    directory = tmp_path / "runs" / "tiny"
    code = (
        "import sys; from pathlib import Path; from mezzotint.common.locks import run_lock\n"
        "with run_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        before = sorted(path.name for path in directory.iterdir())
        message = refused(*train())
        assert message.startswith(f"{directory}: is held by another live process ")
        assert f'"pid": {holder.pid}' in message
        assert sorted(path.name for path in directory.iterdir()) == before
        holder.stdin.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "{}", "a cat"], "{}: is neither a model directory (config.json) nor a run"),
        (["evaluate", "{}/none.yaml"], "{}/none.yaml: cannot be read"),
        (["dashboard", "--runs", "{}"], "{}/mlflow.db: no runs are tracked there yet"),
        (["data", "inspect", "{}/none"], "{}/none/manifest.json: no such file"),
        (["data", "index", "{}"], "{}: no .tar or .tar.gz file in this directory"),
        (["data", "pack", "{}/none", "{}/out"], "{}/none: "),
        (["data", "pack", "{}/none.csv", "{}/out"], "{}/none.csv: no such file"),
        (["data", "tokenizer", "data/emoji", "{}/out", "--vocab", "100000"], "vocab=100000: "),
    ],
)
def test_missing_inputs_are_named_by_every_command(refused, tmp_path, words, message):
    found = refused(*(word.format(tmp_path) for word in words))
    assert found.startswith(message.format(tmp_path))
    assert not (tmp_path / "out").exists()


def test_an_image_is_not_a_recipe(refused, tmp_path):
    path = tmp_path / "image.yaml"
    Image.new("RGB", (2, 2)).save(path, "PNG")
    assert refused("train", path) == f"{path}: is not a UTF-8 text file"


def test_damaged_samples_are_replaced_and_counted_up_to_a_share(
    mezzotint, train, write_set, tmp_path
):
    url = write_set(samples=40, changes={3: {"png": TORN}})
    words = train(f"data.url={url}", "data.max_damaged=0.2", "steps=10", "log.every=10")
    outcome = mezzotint(*words)
    assert outcome.code == 0, outcome.err
    run = tmp_path / "runs" / "tiny"
    values = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = values[-1]["metrics"]
    assert (metrics["damaged/image"], metrics["damaged/caption"]) == (1, 0)
    url = write_set("torn", samples=40, changes={n: {"png": TORN} for n in range(0, 40, 2)})
    words = train(f"data.url={url}", "data.max_damaged=0.1", "steps=10", "log.every=10")
    outcome = mezzotint(*words, "name=torn")
    assert outcome.code == BAD_INPUT
    assert "error: data.max_damaged=0.1: " in outcome.err
    assert "of 40 samples do not decode (20 images)" in outcome.err
    assert f"`mezzotint data verify {url} --images` names them" in outcome.err
