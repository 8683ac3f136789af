"""`mezzotint data verify`, `index` and `tokenizer` at the command line."""

import io
import json
import os

import numpy as np
import pytest

from data_pipeline.sets.stored_set import read_manifest
from data_pipeline.sets.write import write_manifest
from data_pipeline.text.tokenizer import Tokenizer
from launch import errors
from launch.pipeline.config import TokenizerStage
from launch.pipeline.stage_types import make_tokenizer
from launch.progress import Reporter
from mezzotint.common.digests import sha256
from mezzotint.common.text_features import EMPTY_FEATURES, TextFeatureRecord

CUT = {3: {"png": b"\x89PNG\r\n\x1a\n"}, 5: {"txt": b"\xff"}, 7: {"txt": b"two\nlines\n"}}


@pytest.fixture
def damaged(write_set):
    return write_set(changes=CUT)


def test_index_excludes_what_does_not_decode_and_says_what_changed(damaged, mezzotint):
    outcome = mezzotint("data", "index", damaged)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert f"{damaged}/manifest.json: 10 samples in 3 shards" in lines
    assert "excluded samples: 2" in lines
    assert any("0003.png: not a readable" in line for line in lines)
    assert any("0005.txt: the caption is not UTF-8" in line for line in lines)
    assert "changed: samples that are gone, also from splits: 2 (0003, 0005)" in lines
    again = mezzotint("data", "index", damaged).out
    assert "changed" not in again
    found = json.loads(mezzotint("data", "index", damaged, "--json").out)
    assert (found["samples"], len(found["excluded"]), found["changes"]) == (10, 2, [])
    assert mezzotint("data", "verify", damaged, "--images").code == 0


def test_index_without_images_says_so(damaged, mezzotint):
    outcome = mezzotint("data", "index", damaged, "--no-images", "--workers", 2)
    assert "11 samples in 3 shards (images were not decoded)" in outcome.out


def test_verify_decodes_captions_always_and_images_when_told(damaged, refused, mezzotint):
    assert "differs from its manifest; copy what is damaged" in refused("data", "verify", damaged)
    found = mezzotint("data", "verify", damaged, "--images").err
    assert "0003.png" in found
    assert "0005.txt" in found
    assert "0003.png" not in mezzotint("data", "verify", damaged).err


def test_verify_and_inspect_name_files_that_no_manifest_lists(write_set, mezzotint):
    url = write_set()
    (url / "notes.md").write_text("x")
    assert "not in the manifest: notes.md" in mezzotint("data", "verify", url).out
    assert "not in the manifest: notes.md" in mezzotint("data", "inspect", url).out
    found = json.loads(mezzotint("data", "verify", url, "--images", "--json").out)
    assert found["not_in_manifest"] == ["notes.md"]
    assert found["images_decoded"]


def test_a_shard_of_the_same_size_and_time_is_refused_by_every_command(write_set, mezzotint):
    url = write_set()
    shard = next(url.glob("*-000000.tar"))
    status, content = shard.stat(), shard.read_bytes()
    with shard.open("r+b") as file:
        file.write(content.replace(b"red square", b"bad square", 1))
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    for words in (("inspect", url), ("pack", url, f"{url}-out"), ("tokenizer", url, f"{url}-out")):
        outcome = mezzotint("data", *words)
        assert outcome.code == errors.BAD_INPUT
        assert f"error: {shard}: does not match its manifest" in outcome.err
        assert f"mezzotint data index {url}" in outcome.err


def test_a_tokenizer_says_what_it_did_with_the_captions(write_set, mezzotint, refused, tmp_path):
    url = write_set(changes={7: {"txt": "two\nlines ▅\n".encode()}})
    out = tmp_path / "out"
    words = ("data", "tokenizer", url, out, "--vocab", 45)
    shown = mezzotint(*words).out
    assert f"{out}/tokenizer.model: 45 pieces from 13 captions" in shown
    assert "1 captions with symbols that sentencepiece reserves" in shown
    first = json.loads(mezzotint(*words, "--json").out)
    assert (first["captions"], first["reserved"], first["replaced"]) == (13, 1, None)
    other = ("data", "tokenizer", url, out, "--vocab", 300, "--byte-fallback")
    assert f"another tokenizer was there (sha256 {first['sha256'][:12]}" in mezzotint(*other).out
    assert "unknown" not in mezzotint(*other, "--json").out
    message = refused("data", "tokenizer", url, tmp_path / "small", "--vocab", 9)
    assert "choose --vocab" in message
    assert "--character-coverage" in message


def test_a_tokenizer_stage_has_the_same_settings(write_set, tmp_path):
    tree = {
        "kind": "tokenizer",
        "data": {"url": str(write_set())},
        "vocab": 290,
        "character_coverage": 0.9,
        "byte_fallback": True,
    }
    with Reporter(None, shows=False) as reporter:
        facts = make_tokenizer(TokenizerStage.model_validate(tree), tmp_path, reporter)
    assert facts["captions"] == "12"
    assert "different characters are no pieces" in facts["left out or changed"]
    tokenizer = Tokenizer.load(str(tmp_path / "model"))
    assert tokenizer.unknown_id not in tokenizer.encode("日本", 20)


def test_verify_checks_the_features_of_an_empty_caption(write_set, mezzotint, refused, tmp_path):
    content = b"features"
    record = TextFeatureRecord(
        encoder="e" * 64, length=2, width=3, dtype="fp32", empty_sha256=sha256(content)
    )
    url = write_set()
    write_manifest(str(url), read_manifest(str(url)).model_copy(update={"text_features": record}))
    for wrong in (None, b"other"):
        if wrong is not None:
            (url / EMPTY_FEATURES).write_bytes(wrong)
        assert mezzotint("data", "verify", url).code == 2
        assert EMPTY_FEATURES in mezzotint("data", "verify", url).err
    stored = io.BytesIO()
    np.save(stored, np.zeros((2, 3), np.float32))
    (url / EMPTY_FEATURES).write_bytes(stored.getvalue())
    record = record.model_copy(update={"empty_sha256": sha256(stored.getvalue())})
    write_manifest(str(url), read_manifest(str(url)).model_copy(update={"text_features": record}))
    assert mezzotint("data", "verify", url).code == 0
