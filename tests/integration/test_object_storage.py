"""Sets, tokenizers and models in a real S3 server, and what goes wrong there."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3
import s3fs
import torch

from data_pipeline import storage
from data_pipeline.cache import ShardCache
from data_pipeline.config import DataConfig, ImageConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.errors import DataError
from data_pipeline.manifest import read_manifest
from data_pipeline.pack import PackOptions, pack
from data_pipeline.stream import Stream
from data_pipeline.text import Tokenizer
from launch import cli, guard
from models import store
from models.autoencoders.dvae import DVAEConfig
from models.errors import ModelError
from trainer.record import read_metrics

pytestmark = pytest.mark.s3
PACK = ["--split", "composition", "--limit", "60", "--shard-size", "10"]
COMPOSITION = tuple(Selection(split="composition", part=part) for part in ("train", "test"))
TOKEN = "Canary8tOkEnThatExpired"
SECRETS = (s3.CANARY, TOKEN)

READ_SHARE = """
import json, sys
from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.stream import Stream

if __name__ == "__main__":
    url, rank, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    config = DataConfig(url=url, image=ImageConfig(size=8), shuffle_block=2, workers=2)
    batches = iter(Stream(open_dataset(config), global_batch=12, rank=rank, world=2, seed=3))
    seen = [(b.keys, b.images.double().sum().item()) for b, _ in zip(batches, range(10))]
    json.dump(seen, open(out, "w"))
    batches.close()
"""
FETCH = """
import sys
from pathlib import Path
from data_pipeline.cache import ShardCache
from data_pipeline.manifest import read_manifest

manifest = read_manifest(sys.argv[1])
ShardCache(Path(sys.argv[2])).fetch(sys.argv[1], manifest.shards[0])
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and all it said."""

    code: int
    out: str
    err: str


@pytest.fixture
def talk_to(monkeypatch) -> Callable[[Mapping[str, str]], None]:
    """Point this process at a store: clients read the environment when they are made."""

    def talk(environment: Mapping[str, str]) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    return talk


@pytest.fixture(autouse=True)
def here(s3_server, talk_to, monkeypatch, tmp_path) -> Iterator[None]:
    """Every test starts with good credentials and an empty cache."""
    talk_to(s3_server.environment())
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path / "cache"))
    yield
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def mezzotint(monkeypatch, capfd) -> Callable[..., Outcome]:
    """Runs a command in this process; an exit ends the command, not the test."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    def command(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mezzotint", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code, (out, err) = ended.value.code, capfd.readouterr()
        return Outcome(code if isinstance(code, int) else bool(code), out, err)

    monkeypatch.setattr(guard, "leave", leave)
    monkeypatch.setenv("COLUMNS", "200")
    return command


@pytest.fixture(scope="module")
def proxy(s3_server) -> Iterator[s3.Proxy]:
    with s3.proxy(s3_server) as running:
        yield running


@pytest.fixture(autouse=True)
def no_faults(proxy) -> None:
    proxy.reset()


@pytest.fixture(scope="module")
def bucket(s3_server) -> str:
    return s3_server.bucket("tests")


@pytest.fixture(scope="module")
def packed(s3_server, bucket, tmp_path_factory) -> dict[str, object]:
    """Sixty people in six shards, in S3 (`url`) and in a folder (`folder`): what pack says."""
    url, folder = f"{bucket}/people", str(tmp_path_factory.mktemp("people") / "set")
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "data", "pack", "data/emoji", url, *PACK, "--json"],
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


def model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DVAEConfig(image_size=16, vocab=16, width=8, groups=2, patch=2, first=8).build()


def test_a_part_of_a_set_goes_to_s3_with_its_attributes_and_both_parts_of_its_split(packed, people):
    assert packed["samples"] == 60
    whole, part = read_manifest("data/emoji"), read_manifest(people)
    known = {sample.key: sample for sample in whole.samples()}
    for sample in part.samples():
        assert sample.attributes == known[sample.key].attributes
        assert sample.attributes["role"]
    split = part.splits["composition"]
    assert len(split.train) + len(split.test) == 60
    assert min(len(split.train), len(split.test)) > 5
    assert set(split.test) <= set(whole.splits["composition"].test)
    assert part.licence == whole.licence
    tones = Counter(sample.attributes["tone"] for sample in part.samples())
    assert len(tones) == 6
    test = DataConfig(url=people, select=(Selection(split="composition", part="test"),))
    assert set(open_dataset(test).keys()) == set(split.test)


def test_a_set_is_the_same_in_s3_and_in_a_folder(people, folder):
    assert read_manifest(people).fingerprint == read_manifest(folder).fingerprint
    config = {"image": ImageConfig(size=8)}
    remote, local = (open_dataset(DataConfig(url=url, **config)) for url in (people, folder))
    assert remote.captions() == local.captions()
    assert torch.equal(remote.batch(range(60)).images, local.batch(range(60)).images)


def test_every_data_command_works_from_s3_to_s3(mezzotint, people, folder, bucket, tmp_path):
    def run(*words: object) -> str:
        outcome = mezzotint("data", *words)
        assert outcome.code == 0, outcome.err
        assert not any(secret in outcome.out + outcome.err for secret in SECRETS)
        return outcome.out

    assert "whole, 60 samples in 6 shards" in run("verify", people)
    sheet = tmp_path / "sheet.png"
    assert "60 samples in 6 shards" in run("inspect", people, "--sheet", sheet, "--count", 4)
    assert sheet.stat().st_size > 1000
    # tars without a manifest
    tars = f"{bucket}/tars"
    for path in Path(folder).glob("*.tar"):
        copy = tmp_path / path.name
        shutil.copy(path, copy)
        storage.upload(copy, storage.join(tars, path.name))
    assert "60 samples in 6 shards" in run("index", tars, "--name", "tars")
    digests = [[shard.sha256 for shard in read_manifest(url).shards] for url in (tars, people)]
    assert digests[0] == digests[1]
    # a folder of pictures in S3, and a table that names them
    for number in range(3):
        picture = open_dataset(DataConfig(url=folder)).member(number, "png")
        storage.write_bytes(f"{bucket}/photos/{number}.png", picture)
        storage.write_bytes(f"{bucket}/photos/{number}.txt", f"picture {number}".encode())
    assert "3 samples in 1 shards" in run("pack", f"{bucket}/photos", f"{bucket}/photo-set")
    table = f"image,caption\n0.png,zero\n{bucket}/photos/1.png,one\n9.png,gone\n"
    storage.write_bytes(f"{bucket}/photos/table.csv", table.encode())
    out = run("pack", f"{bucket}/photos/table.csv", f"{bucket}/table-set")
    assert "2 samples in 1 shards" in out
    assert "left out 1 pairs: 1 image missing" in out
    # a tokenizer
    run("tokenizer", people, f"{bucket}/tokenizer", "--vocab", 120)
    assert Tokenizer.load(f"{bucket}/tokenizer").vocab_size == 120
    # a model, and what it makes of a set
    dvae = model()
    store.save(f"{bucket}/dvae", dvae.config, dvae.state_dict(), card="# A dVAE\n")
    derived = json.loads(
        run("derive", people, f"{bucket}/tokens", "--model", f"{bucket}/dvae", "--json")
    )
    assert derived["encoder"] == store.describe(f"{bucket}/dvae").digest
    tokens = open_dataset(DataConfig(url=f"{bucket}/tokens", arrays=("codes",)))
    assert tokens.batch(range(4)).array("codes").shape == (4, 4, 4)
    assert tokens.manifest.splits == read_manifest(people).splits
    # a derived set is copied with its encoder
    run("pack", f"{bucket}/tokens", tmp_path / "tokens", "--limit", 5)
    copied = read_manifest(str(tmp_path / "tokens"))
    assert copied.encoder == derived["encoder"]
    assert len(list(copied.samples())) == 5


def test_a_model_directory_lives_in_s3(bucket):
    saved, where = model(), f"{bucket}/model"
    store.save(
        where, saved.config, saved.state_dict(), card="#\n", tokenizer=b"pieces", text_length=5
    )
    loaded = store.load(where)
    for name, value in saved.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])
    assert store.tokenizer_bytes(where) == b"pieces"
    assert store.describe(where).text_length == 5


def test_two_ranks_with_workers_fetch_every_shard_of_a_cold_cache_once(
    proxy, people, folder, tmp_path
):
    environment = {**os.environ, **proxy.environment()}
    script = tmp_path / "share.py"
    script.write_text(READ_SHARE)
    outs = [tmp_path / f"{rank}.json" for rank in range(2)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), people, str(rank), str(out)],
            env={**environment, "PYTHONPATH": str(Path.cwd())},
        )
        for rank, out in enumerate(outs)
    ]
    assert [rank.wait(200) for rank in ranks] == [0, 0]
    shards = read_manifest(people).shards
    fetched = {name: count for name, count in proxy.fetched.items() if name.endswith(".tar")}
    assert fetched == {f"tests/people/{shard.name}": 1 for shard in shards}
    copies = sorted((tmp_path / "cache").glob("*/*.tar*"))
    assert [path.name for path in copies] == sorted(f"{shard.sha256}.tar" for shard in shards)
    local = open_dataset(DataConfig(url=folder, image=ImageConfig(size=8), shuffle_block=2))
    expected = iter(Stream(local, global_batch=12, rank=0, world=1, seed=3))
    for shares in zip(*(json.loads(out.read_text()) for out in outs), strict=True):
        batch = next(expected)
        assert tuple(key for keys, _ in shares for key in keys) == batch.keys
        total = sum(part for _, part in shares)
        assert total == pytest.approx(batch.images.double().sum().item(), rel=1e-12)
    expected.close()


def test_a_start_after_a_kill_in_a_download_finds_no_torn_file(proxy, people, tmp_path):
    cache, shard = tmp_path / "c", read_manifest(people).shards[0]
    proxy.inject(shard.name, "stall", times=1)
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, people, str(cache)],
        env={**os.environ, **proxy.environment()},
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in cache.glob("*/*.tar.*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    torn = list(cache.glob("*/*.tar.*"))
    assert len(torn) == 1
    assert 0 < torn[0].stat().st_size < shard.bytes
    assert list(cache.glob("*/*.tar")) == []
    # the next start may need another shard first: what is left over goes then, too
    other = read_manifest(people).shards[1]
    ShardCache(cache).fetch(people, other)
    assert [path.name for path in cache.glob("*/*.tar*")] == [f"{other.sha256}.tar"]
    whole = ShardCache(cache).fetch(people, shard)
    assert hashlib.sha256(whole.read_bytes()).hexdigest() == shard.sha256


def test_a_bounded_cache_forgets_what_was_used_longest_ago(proxy, people, talk_to, tmp_path):
    talk_to(proxy.environment())
    shards = read_manifest(people).shards
    cache = ShardCache(tmp_path / "c", limit=sum(shard.bytes for shard in shards[:3]))
    for number in (0, 1, 0, 2, 3, 0):
        os.utime(cache.fetch(people, shards[number]), (time.time(), time.time()))
        time.sleep(0.02)
    kept = {path.stem for path in cache.directory.glob("*/*.tar")}
    assert shards[0].sha256 in kept
    assert shards[1].sha256 not in kept
    assert sum(path.stat().st_size for path in cache.directory.glob("*/*.tar")) <= cache.limit
    assert proxy.fetched[f"tests/people/{shards[0].name}"] == 1


def test_the_next_shards_are_fetched_while_one_block_is_read(proxy, people, talk_to, tmp_path):
    talk_to(proxy.environment())
    data = open_dataset(DataConfig(url=people, shuffle_block=2))
    stream = Stream(data, global_batch=2, rank=0, world=1, seed=0)
    next(stream.visits())  # what the first batch consists of; nothing is read yet
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "cache").glob("*/*.tar"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    assert sum(name.endswith(".tar") for name in proxy.fetched) == 4


def test_a_stalled_download_is_given_up_and_begun_again(proxy, people, talk_to, tmp_path):
    talk_to(proxy.environment())
    shard = read_manifest(people).shards[0]
    proxy.inject(shard.name, "stall", times=1)
    began = time.monotonic()
    cache = ShardCache(tmp_path / "c", patience=1.0, retry_wait=0.1)
    assert cache.fetch(people, shard).stat().st_size == shard.bytes
    assert time.monotonic() - began < 8
    proxy.inject(read_manifest(people).shards[1].name, "stall")
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"{people}/.*tar: cannot be read \(no answer for 1 s\)"):
        ShardCache(tmp_path / "c", patience=1.0, retry_wait=0.1).fetch(
            people, read_manifest(people).shards[1]
        )
    assert time.monotonic() - began < 16
    assert [path.name for path in cache.directory.glob("*/*.tar*")] == [f"{shard.sha256}.tar"]


@pytest.mark.parametrize(("fault", "times"), [("503", 2), ("cut", 1)])
def test_faults_that_pass_are_outlived(proxy, people, talk_to, tmp_path, fault, times):
    talk_to(proxy.environment())
    shard = read_manifest(people).shards[0]
    proxy.inject(shard.name, fault, times)
    cache = ShardCache(tmp_path / "c", retry_wait=0.1)
    assert cache.fetch(people, shard).stat().st_size == shard.bytes


def wrong_secret(server, proxy) -> dict[str, str]:
    return server.environment(AWS_SECRET_ACCESS_KEY=TOKEN)


def unknown_key(server, proxy) -> dict[str, str]:
    return server.environment(AWS_ACCESS_KEY_ID="nobody")


def expired_token(server, proxy) -> dict[str, str]:
    proxy.inject("", "expired")
    return proxy.environment(AWS_SESSION_TOKEN=TOKEN)


def forbidden(server, proxy) -> dict[str, str]:
    proxy.inject("", "403")
    return proxy.environment()


def overloaded(server, proxy) -> dict[str, str]:
    proxy.inject("", "503")
    return proxy.environment()


def unreachable(server, proxy) -> dict[str, str]:
    return server.environment(AWS_ENDPOINT_URL="http://127.0.0.1:9")


def no_endpoint(server, proxy) -> dict[str, str]:
    return server.environment(AWS_ENDPOINT_URL="127.0.0.1:9")


def no_credentials(server, proxy) -> dict[str, str]:
    kept = server.environment()
    del kept["AWS_ACCESS_KEY_ID"], kept["AWS_SECRET_ACCESS_KEY"]
    return {**kept, "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CONFIG_FILE": "/dev/null"}


def unknown_profile(server, proxy) -> dict[str, str]:
    return server.environment(AWS_PROFILE="nobody")


REFUSALS = {
    wrong_secret: "the secret key is wrong; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    unknown_key: "the access key is unknown there; check AWS_ACCESS_KEY_ID",
    expired_token: "session token has expired; get new credentials and set AWS_SESSION_TOKEN",
    forbidden: "these credentials may not do this; ask the bucket's owner",
    overloaded: "fails or is overloaded",
    unreachable: "at 127.0.0.1:9 cannot be reached (Connection refused); check AWS_ENDPOINT_URL",
    no_endpoint: "cannot be reached (Invalid endpoint: 127.0.0.1:9); check AWS_ENDPOINT_URL",
    no_credentials: "there are none; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    unknown_profile: "the profile in AWS_PROFILE is in no configuration file",
}


def check_manners(outcome: Outcome, *words: str) -> None:
    """One message with these words, exit code 2, no traceback, no secret."""
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1, outcome.err
    for word in words:
        assert word in outcome.err
    assert "Traceback" not in outcome.err
    assert not any(secret in outcome.err for secret in SECRETS)


def check_files(directory: Path) -> None:
    """No file holds a secret."""
    for path in directory.rglob("*"):
        if path.is_file():
            assert not any(secret.encode() in path.read_bytes() for secret in SECRETS), path


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.__name__)
def test_what_a_store_refuses_is_said_in_one_sentence(
    case, s3_server, proxy, people, talk_to, mezzotint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    talk_to(case(s3_server, proxy))
    began = time.monotonic()
    check_manners(mezzotint("data", "verify", people), people, REFUSALS[case])
    assert time.monotonic() - began < 20
    check_files(tmp_path)


@pytest.mark.parametrize("case", [wrong_secret, expired_token, unreachable, no_credentials])
def test_what_a_store_refuses_a_model_directory_is_said_in_one_sentence(
    case, s3_server, proxy, bucket, talk_to
):
    talk_to(case(s3_server, proxy))
    words = {
        wrong_secret: r"credentials are refused \(SignatureDoesNotMatch\); check AWS_ACCESS_KEY_ID",
        expired_token: r"credentials are refused \(ExpiredToken\); check .*AWS_SESSION_TOKEN",
        unreachable: "cannot be reached; check AWS_ENDPOINT_URL",
        no_credentials: "there are no credentials; set AWS_ACCESS_KEY_ID",
    }[case]
    with pytest.raises(ModelError, match=rf"{bucket}/model/config\.json: .*{words}") as caught:
        store.describe(f"{bucket}/model")
    saved = model()
    with pytest.raises(ModelError, match=rf"{bucket}/new: .*{words}"):
        store.save(f"{bucket}/new", saved.config, saved.state_dict(), card="")
    assert not any(secret in str(caught.value) for secret in SECRETS)


def test_a_missing_bucket_is_named(mezzotint, tmp_path):
    words = "there is no such bucket"
    check_manners(mezzotint("data", "verify", "s3://nowhere-at-all/set"), "s3://nowhere", words)
    outcome = mezzotint("data", "pack", "data/emoji", "s3://nowhere-at-all/set", "--limit", 5)
    check_manners(outcome, "s3://nowhere-at-all/set", words)
    outcome = mezzotint("data", "inspect", "s3://nowhere-at-all/set")
    check_manners(outcome, "s3://nowhere-at-all/set", words)
    with pytest.raises(ModelError, match=r"s3://nowhere-at-all/m/config\.json: .*no such bucket"):
        store.load("s3://nowhere-at-all/m")
    saved = model()
    with pytest.raises(ModelError, match=r"s3://nowhere-at-all/m: .*no such bucket"):
        store.save("s3://nowhere-at-all/m", saved.config, saved.state_dict(), card="")


def test_a_missing_set_a_missing_model_and_a_missing_tokenizer_are_named(
    mezzotint, bucket, people, tmp_path
):
    gone = f"{bucket}/gone"
    check_manners(mezzotint("data", "verify", gone), f"{gone}/manifest.json: no such file; make it")
    check_manners(mezzotint("data", "index", gone), f"{gone}: no such directory")
    check_manners(mezzotint("data", "pack", gone, tmp_path / "o"), f"{gone}: no such folder")
    outcome = mezzotint("data", "derive", people, tmp_path / "o", "--model", gone)
    check_manners(outcome, f"{gone}/config.json: no such file; {gone} is not a model directory")
    with pytest.raises(DataError, match=rf"{gone}/tokenizer\.model: no such file; train it"):
        Tokenizer.load(gone)


def test_a_token_that_expires_while_packing_stops_it_and_no_pair_is_lost(
    proxy, folder, bucket, talk_to, mezzotint, tmp_path
):
    dataset = open_dataset(DataConfig(url=folder))
    for number in range(4):
        storage.write_bytes(f"{bucket}/expire/{number}.png", dataset.member(number, "png"))
        storage.write_bytes(f"{bucket}/expire/{number}.txt", b"a picture")
    command = ("data", "pack", f"{bucket}/expire", tmp_path / "set", "--shard-size", 2, "--json")
    talk_to(proxy.environment())
    proxy.inject("expire/2", "expired")
    outcome = mezzotint(*command)
    check_manners(outcome, REFUSALS[expired_token])
    proxy.reset()
    outcome = mezzotint(*command)
    assert (outcome.code, len(list(read_manifest(str(tmp_path / "set")).samples()))) == (0, 4)


def damaged(people: str, url: str, *, longer: bool) -> str:
    """A copy of the set at `url` whose second shard is another than promised; returns its name."""
    manifest = read_manifest(people)
    storage.write_bytes(f"{url}/manifest.json", manifest.model_dump_json().encode())
    for number, shard in enumerate(manifest.shards):
        content = bytearray(storage.read_bytes(f"{people}/{shard.name}"))
        if number == 1:
            content[700] ^= 1
            content += bytes(512) if longer else b""
        storage.write_bytes(f"{url}/{shard.name}", bytes(content))
    return manifest.shards[1].name


@pytest.mark.parametrize("longer", [True, False], ids=["size", "byte"])
def test_a_shard_that_does_not_match_its_manifest_is_refused(
    longer, mezzotint, people, bucket, tmp_path
):
    url = f"{bucket}/damaged-{longer}"
    name = damaged(people, url, longer=longer)
    command = [sys.executable, "-m", "launch.cli", "train", "recipes/emoji_dvae.yaml"]
    command += [f"data.url={url}", "steps=2", "batch=60", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert f"{url}/{name}: does not match its manifest" in said[0]
    assert "Traceback" not in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in SECRETS)
    assert not list((tmp_path / "cache").glob(f"*/{read_manifest(url).shards[1].sha256}.tar*"))
    outcome = mezzotint("data", "verify", url)
    assert outcome.code == 2
    assert f"{url}/{name}: " in outcome.err
    assert outcome.err.count(".tar: ") == 1
    check_files(tmp_path)


def test_a_url_with_credentials_is_refused_and_not_repeated(mezzotint, tmp_path, monkeypatch):
    url = f"s3://key:{s3.CANARY}@tests/people"
    words = "a URL must not hold credentials; set AWS_ACCESS_KEY_ID"
    check_manners(mezzotint("data", "verify", url), "s3://tests/people", words)
    check_manners(mezzotint("data", "pack", "data/emoji", url), "s3://tests/people", words)
    check_manners(mezzotint("data", "pack", url, tmp_path / "o"), "s3://tests/people", words)
    outcome = mezzotint("data", "derive", "data/emoji", tmp_path / "o", "--model", url)
    check_manners(outcome, "s3://tests/people", words)
    runs = ("--runs", tmp_path / "runs")
    outcome = mezzotint("train", "recipes/emoji_dvae.yaml", f"data.url={url}", *runs)
    check_manners(outcome, "data.url", words)
    recipe = tmp_path / "pipeline.yaml"
    text = Path("recipes/pipelines/quickstart.yaml").read_text()
    recipe.write_text(text)
    outcome = mezzotint("run", recipe, f"values.pairs={url}", *runs)
    check_manners(outcome, "values.pairs", words)
    check_files(tmp_path / "runs")


def test_the_command_itself_ends_with_code_2_and_without_a_secret(s3_server, people, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "data", "verify", people],
        env={**os.environ, **s3_server.environment(AWS_SECRET_ACCESS_KEY=TOKEN)},
        capture_output=True,
        text=True,
        check=False,
    )
    check_manners(Outcome(done.returncode, done.stdout, done.stderr), REFUSALS[wrong_secret])


@pytest.mark.processes
def test_two_processes_train_from_s3_as_from_local_files_and_publish_there(
    proxy, people, folder, bucket, train_sessions, tmp_path, monkeypatch
):
    for name, value in proxy.environment().items():
        monkeypatch.setenv(name, value)
    common = [
        *("steps=4", "batch=8", "engine.precision=fp32", "log.every=1", "log.previews=null"),
        *("model.width=32", "model.first=32", "model.vocab=64", "data.shuffle_block=2"),
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
    check_files(tmp_path)
