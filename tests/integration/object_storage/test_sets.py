"""Sets, tokenizers and models live in S3 as in a folder."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from object_store import SECRETS, model

from data_pipeline.config import DataConfig, ImageConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.sets.stored_set import read_contents, read_manifest
from data_pipeline.text.tokenizer import Tokenizer
from mezzotint.common import storage
from models import store

pytestmark = pytest.mark.s3


def test_a_part_of_a_set_is_packed_to_s3_with_attributes_and_splits(packed, people):
    assert packed["samples"] == 60
    whole, part = read_contents("data/emoji"), read_contents(people)
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
    def run(*arguments: object) -> str:
        outcome = mezzotint("data", *arguments)
        assert outcome.code == 0, outcome.err
        assert not any(secret in outcome.out + outcome.err for secret in SECRETS)
        return outcome.out

    assert "intact, 60 samples in 6 shards" in run("verify", people)
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
    # a folder of images in S3, and a table of their URLs
    for number in range(3):
        image = open_dataset(DataConfig(url=folder)).member(number, "png")
        storage.write_bytes(f"{bucket}/photos/{number}.png", image)
        storage.write_bytes(f"{bucket}/photos/{number}.txt", f"image {number}".encode())
    assert "3 samples in 1 shards" in run("pack", f"{bucket}/photos", f"{bucket}/photo-set")
    table = f"image,caption\n0.png,zero\n{bucket}/photos/1.png,one\n9.png,gone\n"
    storage.write_bytes(f"{bucket}/photos/table.csv", table.encode())
    out = run("pack", f"{bucket}/photos/table.csv", f"{bucket}/table-set")
    assert "2 samples in 1 shards" in out
    assert "rejected 1 pairs: 1 image missing" in out
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
    assert read_contents(f"{bucket}/tokens").splits == read_contents(people).splits
    # a derived set is copied with its encoder
    run("pack", f"{bucket}/tokens", tmp_path / "tokens", "--limit", 5)
    copied = read_manifest(str(tmp_path / "tokens"))
    assert copied.encoder == derived["encoder"]
    assert copied.sample_count == 5


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
