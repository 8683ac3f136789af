"""Sets of CLIP embeddings, made on the command line."""

import json

import numpy as np
import pytest
import torch

from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.sets.contents import SetContents
from data_pipeline.sets.stored_set import read_manifest, read_set
from data_pipeline.shards import unlisted_files
from data_pipeline.text.tokenizer import Tokenizer
from launch.data.derive_embeddings import clip_source
from launch.pipeline.config import DeriveStage
from launch.pipeline.stage_types import execute_stage
from launch.progress import Reporter
from mezzotint.common import storage
from mezzotint.common.errors import UserError
from mezzotint.common.preprocessing import Preprocessing
from mezzotint.common.text_features import TextFeatureRecord
from mezzotint.inference.clip import ClipEmbedder
from mezzotint.inference.config import OpenClip
from mezzotint.inference.encoding.embeddings import EmbeddingOptions, encode_embeddings
from models import store
from models.clip import Clip, ClipConfig
from models.finite import NonFiniteError

CONFIG = ClipConfig(
    image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=40, text_length=8,
    text_width=16, text_layers=1, head_width=8, embed=6,
)  # fmt: skip
ARRAYS = ("image_embedding", "text_embedding", "text_features", "text_tokens")
LINES = {0: {"txt": b"red one\nred thing two"}, 1: {"txt": b""}}


@pytest.fixture
def clip(tmp_path):
    torch.manual_seed(0)
    where = str(tmp_path / "clip")
    tokenizer = Tokenizer.train(["red square number 1", "blue thing two", "green one"], 40)
    weights = CONFIG.build().state_dict()
    seen = Preprocessing(size=16)
    about = {"tokenizer": tokenizer, "text_length": 8, "preprocessing": seen}
    store.save(where, CONFIG, weights, card="", **about)
    return where


def test_a_set_of_embeddings_holds_what_the_clip_makes_of_images_and_captions(
    mezzotint, write_set, clip, tmp_path
):
    images, out = write_set(changes=LINES), str(tmp_path / "out")
    command = ["data", "derive", images, out, "--clip", clip, "--text-features"]
    command += ["--batch", 5, "--device", "cpu", "--json"]
    outcome = mezzotint(*command)
    assert outcome.code == 0, outcome
    digest = store.describe(clip).digest
    report = json.loads(outcome.out)
    assert report["clip"] == digest
    assert (report["dim"], report["samples"]) == (6, 12)
    embedder = ClipEmbedder.load(clip)
    source = open_dataset(DataConfig(url=str(images), image=ImageConfig(size=16)))
    dataset = open_dataset(DataConfig(url=out, arrays=ARRAYS))
    batch = dataset.batch(range(12))
    assert isinstance(embedder.model, Clip)
    with torch.no_grad():
        wanted = embedder.model.project_image(source.batch(range(12)).images)
        wanted_text = embedder.encode_captions(batch.captions)
        empty = embedder.encode_captions([""])
    assert torch.allclose(batch.array("image_embedding"), wanted, atol=1e-6)
    assert torch.allclose(batch.array("text_embedding"), wanted_text.embedding, atol=1e-6)
    assert torch.allclose(batch.array("text_features"), wanted_text.features, atol=1e-6)
    assert batch.array("text_tokens").tolist() == wanted_text.mask.sum(1).tolist()
    assert batch.captions[1] == ""
    for name, value in (("text_features", empty.features), ("text_embedding", empty.embedding)):
        assert torch.allclose(batch.empty_caption[name], value[0], atol=1e-6)
    assert batch.empty_caption["text_tokens"] == 1  # the end id
    manifest = read_manifest(out)
    record = manifest.embeddings
    assert record is not None
    assert (record.digest, record.model, record.scaling.kind) == (digest, clip, "mean_std")
    normal = record.scaling.normalize(batch.array("image_embedding"))
    assert torch.allclose(normal.mean(0), torch.zeros(6), atol=1e-4)
    assert unlisted_files(read_set(out), storage.sizes(out)) == []
    inspected = mezzotint("data", "inspect", out)
    assert f"embeddings of 6 by the CLIP {digest[:12]} ({clip}), normalised by mean_std" in (
        inspected.out
    )
    tree = json.loads(mezzotint("data", "inspect", out, "--json").out)["embeddings"]
    assert tree["scaling"] == {"kind": "mean_std", "dim": 6, "samples": 12}


def test_features_and_embedding_are_those_of_the_caption_that_is_read(write_set, clip, tmp_path):
    images, out = str(write_set(changes=LINES)), str(tmp_path / "out")
    encode_embeddings(DataConfig(url=images), clip, out, EmbeddingOptions(text_features=True))
    config = DataConfig(url=images, image=ImageConfig(size=16), join=(out,), arrays=ARRAYS)
    dataset, embedder = open_dataset(config), ClipEmbedder.load(clip)
    read = set()
    for epoch in range(8):
        sample = dataset.sample(0, seed=1, epoch=epoch)
        found = embedder.encode_captions([sample.caption])
        assert np.allclose(sample.arrays["text_embedding"], found.embedding[0], atol=1e-6)
        assert np.allclose(sample.arrays["text_features"], found.features[0], atol=1e-6)
        read.add(sample.caption)
    assert read == {"red one", "red thing two"}


def test_a_finished_set_is_kept_and_another_normalisation_only_measured(write_set, clip, tmp_path):
    images, out = str(write_set()), str(tmp_path / "out")
    data = DataConfig(url=images)
    first = encode_embeddings(data, clip, out, batch=5)
    tar = min((tmp_path / "out").glob("*.tar"))
    before = tar.stat().st_mtime_ns
    assert encode_embeddings(data, clip, out) == first
    other = encode_embeddings(data, clip, out, EmbeddingOptions("l2_sqrt_d"))
    assert other.embeddings.scaling.kind == "l2_sqrt_d"
    assert other.fingerprint != first.fingerprint
    assert read_manifest(out) == other
    assert encode_embeddings(data, clip, out) == first
    assert tar.stat().st_mtime_ns == before
    encode_embeddings(data, clip, out, EmbeddingOptions(text_features=True))
    assert tar.stat().st_mtime_ns != before


def test_sets_of_earlier_versions_keep_their_fingerprints():
    text = TextFeatureRecord(
        encoder="1" * 64, length=2, width=3, dtype="fp32", empty_sha256="2" * 64
    )
    plain = {"name": "s", "fields": {}, "licence": "CC0-1.0", "provenance": {}, "shards": ()}
    for contents, known in (
        (SetContents(**plain), "efad33146cce"),
        (SetContents(**plain, text_features=text), "34151c143528"),
    ):
        assert contents.fingerprint.startswith(known)


def test_a_non_finite_embedding_leaves_nothing(write_set, clip, tmp_path, monkeypatch):
    project = Clip.project_image

    def broken(self, image):
        found = project(self, image)
        found[image[:, 0, 0, 0] < 0] = torch.nan  # not the red ones
        return found

    monkeypatch.setattr(Clip, "project_image", broken)
    with pytest.raises(NonFiniteError, match=r"set: sample '0001': array 'image_embedding' is not"):
        encode_embeddings(DataConfig(url=str(write_set())), clip, str(tmp_path / "out"), batch=4)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_one_value_in_all_samples_is_refused_and_nothing_is_left(write_set, clip, tmp_path):
    out = str(tmp_path / "out")
    images = str(write_set(samples=1))
    with pytest.raises(UserError, match=r"set: dimension 0 of the image embeddings has one value"):
        encode_embeddings(DataConfig(url=images), clip, out, EmbeddingOptions(text_features=True))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
    assert encode_embeddings(DataConfig(url=images), clip, out, EmbeddingOptions("openai_17.2"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clip", "nowhere"], "nowhere is not a model directory"),
        (
            ["--clip", "{kind: open_clip, chekpoint: f}"],
            "--clip: open_clip.checkpoint: Field required",
        ),
        (["--clip", "CLIP", "--image-fit", "crop"], "--image-fit is crop, but"),
    ],
)
def test_what_is_no_clip_or_feeds_it_otherwise_is_refused(
    refused, write_set, clip, tmp_path, words, message
):
    words = [clip if word == "CLIP" else word for word in words]
    assert message in refused("data", "derive", write_set(), tmp_path / "out", *words)


def test_a_checkpoint_of_open_clip_is_named_by_its_settings():
    found = clip_source("{kind: open_clip, checkpoint: w.safetensors, tag: openai}")
    assert found == OpenClip(checkpoint="w.safetensors", tag="openai")


def test_a_stage_of_a_pipeline_derives_embeddings(write_set, clip, tmp_path):
    stage = DeriveStage.model_validate(
        {
            **{"kind": "derive", "clip": clip, "data": {"url": str(write_set())}},
            **{"normalization": "openai_17.2", "text_features": True, "flip": True},
        }
    )
    with Reporter(None, shows=False) as reporter:
        facts = execute_stage(stage, tmp_path / "stage", None, reporter, tmp_path)
    manifest = read_manifest(str(tmp_path / "stage" / "set"))
    assert read_manifest(str(tmp_path / "stage")) == manifest
    assert {"text_features.npy", "image_embedding_mirrored.npy"} <= manifest.fields.keys()
    digest = store.describe(clip).digest[:12]
    assert facts == {"samples": "12", "CLIP": digest, "normalisation": "openai_17.2"}
